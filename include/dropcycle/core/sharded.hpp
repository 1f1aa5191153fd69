// A named global tensor and the part of it that this rank holds: what checkpoints and initialisation work on.
#pragma once

#include <string>

#include "dropcycle/core/tensor.hpp"

namespace dropcycle {

struct ShardedTensor {
  std::string name;  // global name, e.g. "layers.3.experts.5.gate"
  Shape global_shape;
  Shape offset;        // first global index of the local part, one per dim
  Tensor local;        // the local part
  bool writer = true;  // whether this rank writes the part (exactly one replica does)
};

}  // namespace dropcycle
