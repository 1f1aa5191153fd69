// Every operation of Ops at the sizes of a model's training step, beside its limit on this machine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

struct OperationTime {
  std::string name, sizes;
  double flops = 0;              // of a product; 0 of anything else
  double reads = 0, writes = 0;  // bytes of anything else
  double seconds = 0;            // median
  double limit_seconds = 0;      // what the limit allows
};

// Calls `each` with every operation as it is measured. Operands take turns, so that they come from memory where a step
// would find them there. The limit of a product is the backend's best product's rate; of anything else the median time
// of copying, reading or setting as many bytes with all threads, measured in turns with the operation.
// `config`: its model, train.micro_batch and data.sequence_length, which give T.
void benchmark_ops(Ops& ops, DType compute, const Config& config, int threads,
                   const std::function<void(const OperationTime&)>& each);

}  // namespace dropcycle
