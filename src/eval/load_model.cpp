#include "dropcycle/eval/load_model.hpp"

#include <algorithm>

namespace dropcycle {

std::unique_ptr<Model> load_model(Checkpoint& checkpoint, Machine& machine) {
  const ModelConfig config = parse_model(checkpoint.info().model);
  auto model = std::make_unique<Model>(config, machine.groups, *machine.ops, machine.compute, machine.pipeline);
  for (const ShardedTensor& part : model->parameters().sharded_masters()) checkpoint.read("weight", part);
  model->weights_changed();
  return model;
}

Config config_of(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  const std::filesystem::path folder = find_checkpoint(path);
  const std::filesystem::path run_config = folder.parent_path() / "config.toml";
  Config config = std::filesystem::exists(run_config) ? load_config(run_config, overrides) : parse_config(overrides);
  config.model = parse_model(Checkpoint::open(folder).info().model);
  // The layout of the training run says nothing about the ranks of this one.
  const auto names_layout = [](const std::string& text) { return text.starts_with("parallel."); };
  if (std::ranges::none_of(overrides, names_layout)) config.parallel = {};
  return config;
}

}  // namespace dropcycle
