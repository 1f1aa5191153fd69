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
  std::int64_t elements(GradientGroup group) const { return flats_[group].elements; }
  FlatRange range(std::size_t parameter) const { return ranges_[parameter]; }
  // The range from the first to the last parameter of `group` whose name starts with `prefix` (they are neighbours).
  FlatRange range_of(const std::string& prefix, GradientGroup group) const;

  // Flat arrays. weights() is empty when compute is acc: then the masters are the weights.
  Tensor masters(GradientGroup group) const { return flats_[group].master; }
  Tensor gradients(GradientGroup group) const { return flats_[group].gradient; }
  Tensor weights(GradientGroup group) const { return flats_[group].weight; }

  // View of a whole block (or of a parameter that is its own block) under the name of its first parameter.
  Tensor weight(const std::string& first_name, const Shape& shape) const;
  Tensor gradient(const std::string& first_name, const Shape& shape) const;

  // Every parameter's part of `flats` (laid out as the masters) with its place in the global tensor. A part's `writer`
  // is writes[group], but false where another rank owns the part or nothing is in it.
  std::vector<ShardedTensor> sharded(const PerGroup<Tensor>& flats, const PerGroup<bool>& writes) const;
  // Of all masters, all gradients, for readers.
  std::vector<ShardedTensor> sharded_masters() const;
  std::vector<ShardedTensor> sharded_gradients() const;

  // Changes with every update of the weights (see Weight).
  std::uint64_t version() const { return version_; }
  void advance_version() { version_ = next_weight_version(); }

 private:
  struct Flat {
    OwnedTensor master, gradient, weight;
    std::int64_t elements = 0;
  };
  const ParameterSpec& block_start(const std::string& first_name, const Shape& shape, FlatRange& range) const;

  std::vector<ParameterSpec> specs_;
  DType compute_;
  std::vector<FlatRange> ranges_;
  std::unordered_map<std::string, std::size_t> by_name_;
  PerGroup<Flat> flats_;
  std::uint64_t version_ = next_weight_version();
};

}  // namespace dropcycle
