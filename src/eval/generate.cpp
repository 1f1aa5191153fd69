#include "dropcycle/eval/generate.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dropcycle {

std::int32_t sample_token(std::span<const float> logits, const GenerateOptions& options, double draw) {
  if (options.temperature == 0) {
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t kept =
      options.top_k > 0 ? std::min(logits.size(), static_cast<std::size_t>(options.top_k)) : logits.size();
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), [&](auto a, auto b) {
    const float left = logits[static_cast<std::size_t>(a)], right = logits[static_cast<std::size_t>(b)];
    return left != right ? left > right : a < b;
  });
  const double top = logits[static_cast<std::size_t>(order[0])];
  std::vector<double> weights;
  double total = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    weights.push_back(std::exp((logits[static_cast<std::size_t>(order[i])] - top) / options.temperature));
    total += weights.back();
  }
  double nucleus = 0;
  std::size_t count = 0;
  while (count < kept && nucleus < options.top_p * total) nucleus += weights[count++];
  double left = draw * nucleus;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

std::vector<std::int32_t> generate(Model& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                                   const std::function<void(std::int32_t)>& on_token) {
  if (prompt.empty()) fail(Status::usage, "the prompt has no token: give some text, or a tokenizer with a begin token");
  for (const std::int32_t id : prompt) {
    if (id < 0 || id >= model.config().vocab_size) {
      fail(Status::input, "the prompt has token {}, but the model's vocabulary ends before {}: give its own tokenizer",
           id, model.config().vocab_size);
    }
  }
  Decoder decoder(model, static_cast<std::int64_t>(prompt.size()) + options.tokens);
  const RandomStream stream(options.seed, Purpose::generate, "tokens");
  std::vector<float> logits = decoder.append(prompt);
  std::vector<std::int32_t> tokens;
  while (static_cast<std::int64_t>(tokens.size()) < options.tokens) {
    const std::int32_t next = sample_token(logits, options, stream.uniform(tokens.size()));
    if (std::ranges::find(options.ends, next) != options.ends.end()) break;
    tokens.push_back(next);
    if (on_token) on_token(next);
    if (static_cast<std::int64_t>(tokens.size()) < options.tokens) logits = decoder.append({&next, 1});
  }
  return tokens;
}

}  // namespace dropcycle
