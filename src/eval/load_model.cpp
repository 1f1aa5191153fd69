#include "dropcycle/eval/load_model.hpp"

#include <algorithm>

#include "dropcycle/device/host_mirror.hpp"

namespace dropcycle {

std::unique_ptr<Model> load_model(Checkpoint& checkpoint, Machine& machine) {
  const ModelConfig config = parse_model(checkpoint.info().model);
  auto model = std::make_unique<Model>(config, machine.groups, *machine.ops, machine.compute, machine.pipeline);
  HostMirror mirror(machine.ops->device(), model->parameters().sharded_masters());
  for (const ShardedTensor& part : mirror.parts()) checkpoint.read("weight", part);
  mirror.upload();
  model->weights_changed();
  return model;
}

Config config_of(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  const std::filesystem::path folder = find_checkpoint(path);
  const std::filesystem::path run_config = folder.parent_path() / "config.toml";
  const bool of_run = std::filesystem::exists(run_config);
  Config config = of_run ? load_config(run_config, overrides) : parse_config(overrides);
  config.model = parse_model(Checkpoint::open(folder).info().model);
  const auto names = [&](std::string_view what) {
    return std::ranges::any_of(overrides, [&](const std::string& text) { return text.starts_with(what); });
  };
  std::int64_t& length = config.data.sequence_length;
  if (config.model.attention_window > 0 && !of_run && !names("data.sequence_length")) {
    length = std::min(length, config.model.attention_window);
  }
  // The layout of the training run says nothing about the ranks of this one.
  if (!names("parallel.")) config.parallel = {};
  return config;
}

}  // namespace dropcycle
