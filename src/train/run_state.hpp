// What a run keeps in its checkpoints, and how it comes back.
#pragma once

#include <optional>

#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/config.hpp"
#include "dropcycle/data/dataset.hpp"
#include "dropcycle/device/host_mirror.hpp"
#include "dropcycle/optim/adamw.hpp"

namespace dropcycle {

struct RunPosition {
  std::int64_t step = 0;
  std::string from;                // the checkpoint's folder; empty for a fresh run
  std::optional<DataState> data;   // none for a fresh run
  std::string huggingface = "{}";  // CheckpointInfo::huggingface of the model that the run began with
};

RankGroup rank_group(const Groups& groups);
// Weights and both moments, each replica written once.
std::vector<StateTensors> state_tensors(const Model& model, const AdamW& optimizer, const Groups& groups);
// Points `state` at host memory for its tensors on `device`, which lives as long as the result.
std::vector<HostMirror> mirror_on_host(std::vector<StateTensors>& state, Device& device);
// What checkpoints say of the run's text: data.tokenizer's digest, and what an export needs to know of a model that
// didn't come from transformers (CheckpointInfo::huggingface).
struct TextFacts {
  std::string tokenizer_digest, huggingface;
};
TextFacts text_facts(const Config& config);
CheckpointInfo checkpoint_info(const Config& config, std::int64_t step, const DataState& data, const TextFacts& text);
// Loads the newest whole checkpoint of config.train.output into model and optimizer; a fresh position if there is none.
// Throws Error{usage} if it belongs to another model.
RunPosition resume_run(const Config& config, Model& model, const AdamW& optimizer, const Groups& groups);
// Fills fresh weights as config.init says; CheckpointInfo::huggingface of the model that they came from, "{}" if none.
// Collective only in reading the same files.
std::string initialise(Model& model, const Config& config);

}  // namespace dropcycle
