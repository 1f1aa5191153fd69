// A model from a checkpoint, on any layout.
#pragma once

#include <filesystem>
#include <memory>

#include "dropcycle/checkpoint/checkpoint.hpp"
#include "dropcycle/model/model.hpp"
#include "dropcycle/train/machine.hpp"

namespace dropcycle {

// Reads this rank's weights. Throws Error{input} for a damaged checkpoint.
std::unique_ptr<Model> load_model(Checkpoint& checkpoint, Machine& machine);

// The configuration that evaluates the checkpoint at `path` (a checkpoint or a run folder): the run's config.toml where
// there is one, else sequences of the default length or the model's attention_window; the checkpoint's own model
// section and the default layout; then `overrides`.
Config config_of(const std::filesystem::path& path, const std::vector<std::string>& overrides);

}  // namespace dropcycle
