// Text generation from a model: greedy, or sampled with temperature, top-k and top-p.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "dropcycle/model/decoder.hpp"

namespace dropcycle {

struct GenerateOptions {
  std::int64_t tokens = 64;        // at most
  double temperature = 0.8;        // 0: greedy (the largest logit, the lower id on ties)
  std::int64_t top_k = 40;         // 0: all
  double top_p = 1;                // least set of tokens with this probability
  std::uint64_t seed = 1;          // token i is drawn with RandomStream(seed, generate).uniform(i)
  std::vector<std::int32_t> ends;  // stops before the first of these tokens
};

// The next token for logits [V]; `draw` in (0, 1). Ties go to the lower id.
std::int32_t sample_token(std::span<const float> logits, const GenerateOptions& options, double draw);

// The new tokens after `prompt` (at least one token). `on_token` sees each as it comes. Collective over ep and pp.
std::vector<std::int32_t> generate(Model& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                                   const std::function<void(std::int32_t)>& on_token = {});

}  // namespace dropcycle
