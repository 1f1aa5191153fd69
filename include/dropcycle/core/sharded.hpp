// A named global tensor and the part of it that this rank holds: what checkpoints and initialisation work on.
#pragma once

#include <cstdint>
#include <string>

#include "dropcycle/core/tensor.hpp"

namespace dropcycle {

struct ShardedTensor {
  std::string name;  // global name, e.g. "layers.3.moe.experts.5.gate"
  Shape global_shape;
  Shape offset;        // first global index of the local part, one per dim
  Tensor local;        // the local part
  bool writer = true;  // whether this rank writes the part (exactly one replica does)
};

// The whole tensor on this rank.
inline ShardedTensor whole(std::string name, const Tensor& tensor) {
  Shape offset = tensor.shape;
  for (int dim = 0; dim < offset.dims(); ++dim) offset.set(dim, 0);
  return {std::move(name), tensor.shape, offset, tensor, true};
}

// Throws Error{internal} unless the local part lies inside the global tensor.
inline void check_bounds(const ShardedTensor& tensor) {
  const Shape& local = tensor.local.shape;
  bool inside = local.dims() == tensor.global_shape.dims() && tensor.offset.dims() == local.dims();
  for (int dim = 0; inside && dim < local.dims(); ++dim) {
    inside = tensor.offset[dim] >= 0 && local[dim] >= 0 && tensor.offset[dim] + local[dim] <= tensor.global_shape[dim];
  }
  require(inside, "{}: part {} at {} doesn't lie in {}", tensor.name, to_string(local), to_string(tensor.offset),
          to_string(tensor.global_shape));
}

// Calls run(local_index, global_index, count) for every stretch of the local part that is contiguous in the row-major
// global tensor too, in order; the indices count elements.
template <class Run>
void for_each_run(const ShardedTensor& tensor, Run&& run) {
  check_bounds(tensor);
  const Shape& local = tensor.local.shape;
  if (local.elements() == 0) return;
  int split = local.dims() - 1;  // dims after `split` are whole
  std::int64_t inner = 1;
  while (split >= 0 && local[split] == tensor.global_shape[split]) inner *= local[split--];
  const std::int64_t count = split < 0 ? inner : inner * local[split];
  for (std::int64_t first = 0; first < local.elements(); first += count) {
    std::int64_t rest = first, global = 0, stride = 1;
    for (int dim = local.dims() - 1; dim >= 0; --dim) {
      global += (tensor.offset[dim] + rest % local[dim]) * stride;
      rest /= local[dim];
      stride *= tensor.global_shape[dim];
    }
    run(first, global, count);
  }
}

}  // namespace dropcycle
