// Sizes on one rank, as plan.hpp names them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dropcycle/model/pipeline.hpp"
#include "dropcycle/model/plan.hpp"

namespace dropcycle {

struct PlanSizes {
  double c = 2, a = 4;                          // bytes
  double tp = 1, cp = 1, ep = 1, etp = 1;       // ranks
  double whole = 0, g = 0, t = 0;               // rows: B S, inside products, of the residual stream
  double hidden = 0, heads = 0, q = 0, kv = 0;  // columns on this rank; heads: queries'
  double kv_heads = 0, head_size = 0;           // of the model
  double width = 0, vocab = 0;                  // F', V'
  bool moe = false;
  double experts = 0, chosen = 0, local_experts = 0, expert_width = 0;
  double received = 0, m = 0;  // rows after the exchange over ep; the experts' rows
  int parts = 1;               // in which rows are dispatched
  bool jitter = false, evaluates = true;
  std::string recompute;
};

// For experts whose rows are `load` times what an even router gives them.
PlanSizes plan_sizes(const Config& config, const Topology& topology, const PlanOptions& options, double load);

// Bytes of gradients in which activations may lie (GradientMemory): before the first layer's, and of each layer.
struct GradientLoan {
  double first = 0, dense = 0, expert = 0;
};

// Fills saved and scratch, each with the sizes that the experts' load of it gives.
void add_activations(StagePlan& stage, const PlanSizes& of_chunk, const PlanSizes& of_layer,
                     const std::vector<Chunk>& chunks, int stages, const std::optional<GradientLoan>& lent);

}  // namespace dropcycle
