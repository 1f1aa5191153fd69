// The tensors that a run's ranks hold, counted and by the plan.
#pragma once

#include "dropcycle/model/plan.hpp"
#include "dropcycle/optim/adamw.hpp"
#include "dropcycle/train/machine.hpp"

namespace dropcycle {

// Bytes, each of the rank that has most of it. Packed copies of the weights are not among them.
struct HeldBytes {
  double all = 0;
  double state = 0;        // parameters, gradients, masters and moments
  double activations = 0;  // at the peak
};

struct RunMemory {
  HeldBytes counted;
  // By the plan: for an even router; for the rows that each rank's experts got (Model::expert_load); at worst.
  HeldBytes even, routed, worst;
};

// Of the steps so far. `evaluates`: held-out losses were computed among them. Collective over all ranks.
RunMemory run_memory(const Config& config, Machine& machine, const Model& model, const AdamW& optimizer,
                     bool evaluates);

}  // namespace dropcycle
