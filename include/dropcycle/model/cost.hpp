// Parameter counts and floating-point operations of a model (the paper's Tables 2 to 4).
#pragma once

#include <cstdint>

#include "dropcycle/core/config.hpp"

namespace dropcycle {

struct ParameterCount {
  std::int64_t total = 0;
  std::int64_t active = 0;  // used by one token: K of E experts
};
ParameterCount count_parameters(const ModelConfig& config);

// Operations of one forward pass over a sequence of S tokens by the paper's Table 3 (embeddings counted as a product,
// the whole S×S square of attention).
double forward_flops_table3(const ModelConfig& config, std::int64_t sequence);

// Operations of the matrix products that a training step really executes per token: three times (forward, and two for
// backward) 2 * active matrix parameters, head included, embedding lookup not, and half the S×S square.
double training_flops_per_token(const ModelConfig& config, std::int64_t sequence);

}  // namespace dropcycle
