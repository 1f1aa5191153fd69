// The files that tools/golden writes, what our code computes for them, and how far apart the two are.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dropcycle/checkpoint/safetensors.hpp"
#include "dropcycle/core/config.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle::test {

// One model with what PyTorch computed for it.
class Golden {
 public:
  // Reads PATH (NAME.toml) and NAME.safetensors beside it.
  explicit Golden(const std::filesystem::path& path);

  const std::string& name() const { return name_; }
  const Config& config() const { return config_; }
  // Sizes and values of a tensor, e.g. "f64/gradient/layers.0.attention.query". Throws Error{input} if it isn't there.
  const std::vector<std::int64_t>& shape(const std::string& tensor) const;
  std::vector<double> values(const std::string& tensor) const;
  // The names of the tensors that start with `prefix`, without it.
  std::vector<std::string> names(const std::string& prefix) const;

 private:
  const SafetensorsEntry& entry(const std::string& tensor) const;

  std::string name_, path_, data_;
  Config config_;
  std::map<std::string, SafetensorsEntry> entries_;
};

// All models of tests/golden/models, or of the folder that the environment variable DROPCYCLE_GOLDEN names.
std::vector<Golden> load_goldens();

// "logits", "cached logits" (one token at a time), "losses", "loss", "balance", "gradient_norm", "gradient/PARAMETER"
// and "after/PARAMETER", as tools/golden has them.
using Numbers = std::map<std::string, std::vector<double>>;
Numbers compute(const Golden& golden, Ops& ops, DType compute);
// Logits, losses, loss, gradient_norm and gradients of every batch, each with the first weights.
std::vector<Numbers> compute_batches(const Golden& golden, Ops& ops, DType compute);

double norm(const std::vector<double>& x);
// ‖x - y‖.
double distance(const std::vector<double>& x, const std::vector<double>& y);
// ‖x - y‖ / max(‖y‖, least); 0 where x equals y.
double relative_error(const std::vector<double>& x, const std::vector<double>& y, double least);

}  // namespace dropcycle::test
