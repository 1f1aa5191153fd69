// CUDA graphs around another backend's operations: what repeat() runs is recorded once and launched as a whole when it
// comes again, which costs one launch instead of one for every kernel.
#pragma once

#include <memory>

#include "dropcycle/device/cuda.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle::cuda {

// `inner` runs on device.stream(), and on streams that it joins to it.
std::unique_ptr<Ops> make_graph_ops(std::unique_ptr<Ops> inner, CudaDevice& device);

}  // namespace dropcycle::cuda
