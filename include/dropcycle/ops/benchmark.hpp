// Every operation of Ops at the sizes of a model's training step, beside its limit on this machine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

// Rates measured in this process, with all the threads of the backend.
struct MachineLimits {
  double products = 0;  // multiplications and additions of the backend's best product, per second
  double copy = 0;      // bytes read and written per second, copying or updating blocks far larger than the caches
  double read = 0;      // bytes per second by reading them
};
// The better of two measurements.
MachineLimits best_of(const MachineLimits& a, const MachineLimits& b);
MachineLimits measure_limits(Ops& ops, DType compute, int threads);

struct OperationTime {
  std::string name, sizes;
  double seconds = 0;           // median
  double flops = 0, bytes = 0;  // of one call: of a product, or read and written by anything else; the other is 0
  bool reads_only = false;
  // What the limits allow: flops / products, bytes / copy, or bytes / read.
  double limit_seconds(const MachineLimits& limits) const {
    return flops > 0 ? flops / limits.products : bytes / (reads_only ? limits.read : limits.copy);
  }
};

// Calls `each` with every operation as it is measured. Operands take turns, so that they come from memory where a step
// would find them there. `config`: its model, train.micro_batch and data.sequence_length, which give T.
void benchmark_ops(Ops& ops, DType compute, const Config& config,
                   const std::function<void(const OperationTime&)>& each);

}  // namespace dropcycle
