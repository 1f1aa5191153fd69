// What every verb that runs a model needs: process groups, the pipeline's layers, the backend and the type of its
// numbers.
#pragma once

#include <memory>
#include <string>

#include "dropcycle/core/config.hpp"
#include "dropcycle/model/pipeline.hpp"
#include "dropcycle/ops/ops.hpp"
#include "dropcycle/parallel/runtime.hpp"

namespace dropcycle {

struct Machine {
  Groups groups;
  PipelineOptions pipeline = {};
  std::unique_ptr<Ops> ops;
  DType compute = DType::f32;
  int threads = 1;
};

// compute_dtype "auto": bf16 where the processor multiplies it natively, else f32. threads 0: this process's share of
// the processors that it may run on. Throws Error{usage} for a layout that doesn't fit the ranks or an axis that this
// version doesn't run.
Machine make_machine(const Config& config, const Runtime& runtime);

// Matrix-product operations per second of this machine (all ranks of `groups` at once), measured in some 50 ms.
double measure_product_speed(Machine& machine);

}  // namespace dropcycle
