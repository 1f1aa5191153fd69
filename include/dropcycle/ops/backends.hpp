// The factories behind make_ops(), one per backend.
#pragma once

#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

std::unique_ptr<Ops> make_reference_ops();
std::unique_ptr<Ops> make_cpu_ops(const OpsOptions& options);
// On cuda_device(options.local_rank), and with its errors.
std::unique_ptr<Ops> make_cuda_ops(const OpsOptions& options);

}  // namespace dropcycle
