// What a run keeps in its checkpoints, and how it comes back.
#pragma once

#include <optional>

#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/config.hpp"
#include "dropcycle/data/dataset.hpp"
#include "dropcycle/optim/adamw.hpp"

namespace dropcycle {

struct RunPosition {
  std::int64_t step = 0;
  std::string from;               // the checkpoint's folder; empty for a fresh run
  std::optional<DataState> data;  // none for a fresh run
};

RankGroup rank_group(const Groups& groups);
// Weights and both moments, each replica written once.
std::vector<StateTensors> state_tensors(const Model& model, const AdamW& optimizer, const Groups& groups);
CheckpointInfo checkpoint_info(const Config& config, std::int64_t step, const DataState& data,
                               const std::string& tokenizer_digest);
// Loads the newest whole checkpoint of config.train.output into model and optimizer; a fresh position if there is none.
// Throws Error{usage} if it belongs to another model.
RunPosition resume_run(const Config& config, Model& model, const AdamW& optimizer, const Groups& groups);
// Fills fresh weights as config.init says. Collective only in reading the same files.
void initialise(Model& model, const Config& config);

}  // namespace dropcycle
