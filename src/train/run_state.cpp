#include "run_state.hpp"

#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "dropcycle/core/log.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "dropcycle/device/host_mirror.hpp"
#include "dropcycle/upcycle/upcycle.hpp"

namespace dropcycle {

namespace {

// "it has `heads = 4`, but the configuration `heads = 8`", of the first key that differs.
std::string first_difference(const ModelConfig& theirs, const ModelConfig& ours) {
  std::istringstream left(to_toml(theirs)), right(to_toml(ours));
  std::string line, our_line;
  while (std::getline(left, line) && std::getline(right, our_line) && line == our_line) {
  }
  return fmt::format("it has `{}`, but the configuration `{}`", line, our_line);
}

}  // namespace

RankGroup rank_group(const Groups& groups) {
  Communicator& world = groups.world();
  return {.rank = world.rank(), .size = world.size(), .all_gather_text = [&world](const std::string& text) {
            return world.all_gather_text(text);
          }};
}

std::vector<StateTensors> state_tensors(const Model& model, const AdamW& optimizer, const Groups& groups) {
  const ParameterStore& store = model.parameters();
  store.join_masters(model.ops());
  const auto writes = PerGroup<bool>::of([&](GradientGroup group) { return groups[replicas_of(group)].rank() == 0; });
  const auto parts = [&](auto flat_of) { return store.sharded(PerGroup<Tensor>::of(flat_of), writes); };
  return {{"weight", store.sharded_masters(writes)},
          {"m", parts([&](GradientGroup group) { return optimizer.first_moment(group); })},
          {"v", parts([&](GradientGroup group) { return optimizer.second_moment(group); })}};
}

std::vector<HostMirror> mirror_on_host(std::vector<StateTensors>& state, Device& device) {
  std::vector<HostMirror> mirrors;
  for (StateTensors& kind : state) {
    mirrors.emplace_back(device, std::move(kind.tensors));
    kind.tensors = mirrors.back().parts();
  }
  return mirrors;
}

TextFacts text_facts(const Config& config) {
  nlohmann::ordered_json about = {{"max_position_embeddings", config.data.sequence_length}};
  TextFacts facts;
  if (!config.data.tokenizer.empty()) {
    const Tokenizer tokenizer(config.data.tokenizer);
    facts.tokenizer_digest = tokenizer.digest();
    for (const auto& [key, id] : {std::pair("bos_token_id", tokenizer.bos_id()),
                                  {"eos_token_id", tokenizer.eos_id()},
                                  {"pad_token_id", tokenizer.pad_id()}}) {
      about[key] = id < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(id);
    }
  }
  facts.huggingface = nlohmann::ordered_json{{"config", std::move(about)}}.dump();
  return facts;
}

CheckpointInfo checkpoint_info(const Config& config, std::int64_t step, const DataState& data, const TextFacts& text) {
  return {.step = step,
          .model = to_toml(config.model),
          .config = to_toml(config),
          .data_position = data.to_json(),
          .seed = config.train.seed,
          .tokenizer_digest = text.tokenizer_digest,
          .huggingface = text.huggingface};
}

RunPosition resume_run(const Config& config, Model& model, const AdamW& optimizer, const Groups& groups) {
  RunPosition position;
  auto state = state_tensors(model, optimizer, groups);
  std::vector<HostMirror> mirrors = mirror_on_host(state, model.ops().device());
  const auto folder = load_newest(config.train.output, rank_group(groups), [&](Checkpoint& checkpoint) {
    if (parse_model(checkpoint.info().model) != config.model) {
      fail(Status::usage, "{}: holds another model than the configuration's [model]: use another train.output",
           checkpoint.folder().string());
    }
    for (const StateTensors& kind : state) {
      for (const ShardedTensor& part : kind.tensors) checkpoint.read(kind.kind, part);
    }
    position.step = checkpoint.info().step;
    position.huggingface = checkpoint.info().huggingface;
    position.data = DataState::from_json(checkpoint.info().data_position);
  });
  if (!folder) return {};
  for (HostMirror& mirror : mirrors) mirror.upload();
  position.from = folder->string();
  model.weights_changed();
  return position;
}

namespace {

// `parts` of every parameter, in the host's memory, from the model that config.init names; its
// CheckpointInfo::huggingface.
std::string read_parent(const Config& config, std::span<const ParameterSpec> specs,
                        std::span<const ShardedTensor> parts) {
  Checkpoint parent = Checkpoint::open(find_checkpoint(config.init.from));
  const ModelConfig parent_model = parse_model(parent.info().model);
  const auto read = [&](const ShardedTensor& part) { parent.read("weight", part); };
  if (config.init.method == "checkpoint") {
    if (parent_model != config.model) {
      fail(Status::usage, "init.from = {}: {}: take the [model] that `dropcycle inspect` shows of it", config.init.from,
           first_difference(parent_model, config.model));
    }
    for (const ShardedTensor& part : parts) read(part);
    return parent.info().huggingface;
  }
  try {
    check_fits(parent_model, config.model);
  } catch (const Error& error) {
    fail(error.status(), "init.from = {}: {}", parent.folder().string(), error.what());
  }
  initialise(config.model, config.init, specs, parts, parent_model, read);
  return parent.info().huggingface;
}

}  // namespace

std::string initialise(Model& model, const Config& config) {
  std::string huggingface = "{}";
  ParameterStore& store = model.parameters();
  const auto parts = store.sharded_gradients();  // there is room for every parameter's whole part
  if (config.init.method == "scratch") {
    for (std::size_t i = 0; i < parts.size(); ++i) {
      initialise_fresh(store.specs()[i], config.init, config.model.init_std, parts[i], model.ops());
    }
  } else {
    HostMirror mirror(model.ops().device(), parts);
    huggingface = read_parent(config, store.specs(), mirror.parts());
    mirror.upload();
  }
  store.take_weights_from_gradients(model.ops());
  return huggingface;
}

}  // namespace dropcycle
