// Parameters: what a layer declares of each, and one struct template for weights, gradients and checkpoints.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "dropcycle/core/tensor.hpp"
#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// How fresh values are drawn: normal(0, init_std), all ones, or the router's own distribution.
enum class Initial { normal, ones, router };
// For weight-decay exclusions.
enum class Role { matrix, norm, embedding, router };

// Which ranks hold the same part of a parameter, and so sum its gradient.
enum class GradientGroup {
  dense,       // split over tp: the sum is over dp × cp
  replicated,  // whole on every rank of a stage (norms, router: what is kept in acc): over tp × cp × dp
  expert,      // of one expert rank: over edp
};
inline constexpr std::array<GradientGroup, 3> kGradientGroups = {GradientGroup::dense, GradientGroup::replicated,
                                                                 GradientGroup::expert};
// The ranks that sum the gradients of `group`.
GroupKind replicas_of(GradientGroup group);
// One value for each gradient group.
template <class T>
class PerGroup {
 public:
  PerGroup() = default;
  // Every value made by make(group).
  template <class Make>
  static PerGroup of(Make make) {
    return PerGroup{{make(kGradientGroups[0]), make(kGradientGroups[1]), make(kGradientGroups[2])}};
  }
  T& operator[](GradientGroup group) { return values_[static_cast<std::size_t>(group)]; }
  const T& operator[](GradientGroup group) const { return values_[static_cast<std::size_t>(group)]; }

 private:
  explicit PerGroup(std::array<T, 3> values) : values_(std::move(values)) {}
  std::array<T, 3> values_{};
};

// The part of a tensor with indices [first, first + count) of dim `dim`; all of it where dim is negative.
struct Part {
  int dim = -1;
  std::int64_t first = 0, count = 0;
  // The same indices of another dim.
  Part along(int other) const { return {dim < 0 ? dim : other, first, count}; }
};
// This rank's part of `size` indices (piece_of); all of it where it is alone.
Part part_of(int dim, std::int64_t size, const Communicator& ranks);

// Throws Error{usage} naming both unless ranks.size() divides `size`.
void check_divides(std::int64_t size, const char* size_key, const Communicator& ranks, const char* ranks_key);

struct ParameterSpec {
  std::string name;  // global name
  Shape shape;       // global shape; matrices are [out, in]
  Initial initial = Initial::normal;
  Role role = Role::matrix;
  GradientGroup group = GradientGroup::dense;
  // Parameters of one block lie one after another without padding, so that a layer may view them as one matrix
  // (query, key, value; gate, up). Equal block names, adjacent declaration.
  std::string block = {};
  Part part = {};  // what this rank holds
  // False: another rank of tp holds the same part; it is that rank that counts it in the norm and writes it.
  bool owner = true;
  // Kept and used in acc precision (norms, router) rather than compute.
  bool full_precision() const { return role == Role::norm || role == Role::router; }
  // Of the part: its shape, and the first global index of every dim.
  Shape local_shape() const;
  Shape offset() const;
};

}  // namespace dropcycle
