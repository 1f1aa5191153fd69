// All parameters of one rank in flat arrays, one set per gradient group: masters (acc), gradients (acc) and, when
// compute isn't acc, weights (compute). The optimizer and the gradient reduction see flat arrays; layers see views.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "dropcycle/core/sharded.hpp"
#include "dropcycle/device/arena.hpp"
#include "dropcycle/layers/parameter.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

// Elements [first, last) of a group's flat arrays.
struct FlatRange {
  GradientGroup group = GradientGroup::dense;
  std::int64_t first = 0, last = 0;
};

class ParameterStore {
 public:
  // Lays the parameters out in the order of `specs`; blocks start at multiples of 64 elements.
  ParameterStore(std::vector<ParameterSpec> specs, DType compute);

  DType compute() const { return compute_; }
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  std::int64_t elements(GradientGroup group) const { return flats_[index(group)].elements; }
  FlatRange range(std::size_t parameter) const { return ranges_[parameter]; }
  // The range from the first to the last parameter of `group` whose name starts with `prefix` (they are neighbours).
  FlatRange range_of(const std::string& prefix, GradientGroup group) const;

  // Flat arrays. weights() is empty when compute is acc: then the masters are the weights.
  Tensor masters(GradientGroup group) const { return flats_[index(group)].master; }
  Tensor gradients(GradientGroup group) const { return flats_[index(group)].gradient; }
  Tensor weights(GradientGroup group) const { return flats_[index(group)].weight; }

  // View of a whole block (or of a parameter that is its own block) under the name of its first parameter.
  Tensor weight(const std::string& first_name, const Shape& shape) const;
  Tensor gradient(const std::string& first_name, const Shape& shape) const;

  // Every parameter's part of `dense` and `expert` (flat arrays laid out as the masters), for checkpoints.
  std::vector<ShardedTensor> sharded(const Tensor& dense, const Tensor& expert, bool dense_writer,
                                     bool expert_writer) const;
  std::vector<ShardedTensor> sharded_masters(bool dense_writer, bool expert_writer) const;

  // Changes with every update of the weights (see Weight).
  std::uint64_t version() const { return version_; }
  void advance_version() { version_ = next_weight_version(); }

 private:
  struct Flat {
    OwnedTensor master, gradient, weight;
    std::int64_t elements = 0;
  };
  static std::size_t index(GradientGroup group) { return group == GradientGroup::dense ? 0 : 1; }
  const ParameterSpec& block_start(const std::string& first_name, const Shape& shape, FlatRange& range) const;

  std::vector<ParameterSpec> specs_;
  DType compute_;
  std::vector<FlatRange> ranges_;
  std::unordered_map<std::string, std::size_t> by_name_;
  Flat flats_[2];
  std::uint64_t version_ = next_weight_version();
};

}  // namespace dropcycle
