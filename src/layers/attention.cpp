#include "dropcycle/layers/attention.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dropcycle/layers/context_parallel.hpp"

namespace dropcycle {

std::vector<double> rope_inverse_frequencies(const ModelConfig& config) {
  const double factor = config.rope_factor, low = config.rope_low_frequency_factor,
               high = config.rope_high_frequency_factor;
  const auto scaled = [&](double frequency) {
    if (config.rope_scaling == "linear") return frequency / factor;
    if (config.rope_scaling == "none") return frequency;
    const double waves =
        static_cast<double>(config.rope_original_positions) * frequency / (2 * std::numbers::pi);  // P / wave
    const double kept = std::clamp((waves - low) / (high - low), 0.0, 1.0);
    return (1 - kept) * frequency / factor + kept * frequency;
  };
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < config.head_size / 2; ++i) {
    frequencies.push_back(
        scaled(std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_size))));
  }
  return frequencies;
}

AttentionLayer::AttentionLayer(const ModelConfig& config)
    : config_(config), inverse_frequencies_(rope_inverse_frequencies(config)) {
  require(config.heads % config.kv_heads == 0, "{} query heads on {} key/value heads", config.heads, config.kv_heads);
  require(config.head_size % 2 == 0, "head size {} is odd", config.head_size);
}

void AttentionLayer::declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const {
  const std::int64_t hidden = config_.hidden_size, q = config_.heads * config_.head_size,
                     kv = config_.kv_heads * config_.head_size;
  const std::string block = prefix + "attention.qkv";
  specs.push_back({.name = prefix + "attention_norm", .shape = {hidden}, .initial = Initial::ones, .role = Role::norm});
  specs.push_back({.name = prefix + "attention.query", .shape = {q, hidden}, .block = block});
  specs.push_back({.name = prefix + "attention.key", .shape = {kv, hidden}, .block = block});
  specs.push_back({.name = prefix + "attention.value", .shape = {kv, hidden}, .block = block});
  specs.push_back({.name = prefix + "attention.output", .shape = {hidden, q}});
}

AttentionShape AttentionLayer::shape(const Microbatch& batch) const {
  return {.batch = batch.batch,
          .sequence = batch.sequence,
          .heads = config_.heads,
          .kv_heads = config_.kv_heads,
          .head_size = config_.head_size};
}

Tensor AttentionLayer::inverse_frequencies_view() const {
  return {const_cast<double*>(inverse_frequencies_.data()), Shape{config_.head_size / 2}};
}

Stream AttentionLayer::forward(Context& c, const AttentionParameters<Tensor>& w, const Microbatch& batch,
                               const Stream& in, const Tensor& delta, AttentionSaved& saved) const {
  const ArenaScope scope(c.scratch);
  const AttentionShape s = shape(batch);
  const std::int64_t tokens = s.tokens();
  // 1. Residual addition and norm.
  const Tensor normed = norm_forward(c, in, w.norm, config_.norm_epsilon, saved.norm);
  // 2. Query, key and value in one product.
  saved.qkv = c.saved.tensor(c.compute, {tokens, s.qkv_width()});
  c.ops.linear(normed, c.weight(w.qkv), saved.qkv);
  // 3. Rotary positions on queries and keys.
  c.ops.rope(saved.qkv, batch.positions, inverse_frequencies_view(), s.head_size, s.heads + s.kv_heads, +1);
  // 4. Attention.
  saved.attended = c.saved.tensor(c.compute, {tokens, s.heads * s.head_size});
  saved.lse = c.saved.tensor(c.acc(), {tokens, s.heads});
  sequence_attention(c, s, batch, saved.qkv, saved.attended, saved.lse);
  // 5. Output projection.
  c.ops.linear(saved.attended, c.weight(w.output), delta);
  return {saved.norm.sum, delta};
}

void AttentionLayer::backward(Context& c, const AttentionParameters<Tensor>& w, const AttentionParameters<Tensor>& dw,
                              const Microbatch& batch, const AttentionSaved& saved, const Tensor& g) const {
  const ArenaScope scope(c.scratch);
  const AttentionShape s = shape(batch);
  // 5. Output projection.
  const Tensor dattended = c.scratch.tensor(c.compute, saved.attended.shape);
  c.ops.linear_dx(g, c.weight(w.output), dattended);
  c.ops.linear_dw(g, saved.attended, dw.output);
  // 4. Attention.
  const Tensor dqkv = c.scratch.tensor(c.compute, saved.qkv.shape);
  sequence_attention_backward(c, s, batch, saved.qkv, saved.attended, saved.lse, dattended, dqkv);
  // 3. Rotary positions, turned back.
  c.ops.rope(dqkv, batch.positions, inverse_frequencies_view(), s.head_size, s.heads + s.kv_heads, -1);
  // 2. Query, key and value.
  const Tensor dnormed = c.scratch.tensor(c.compute, g.shape);
  c.ops.linear_dx(dqkv, c.weight(w.qkv), dnormed);
  c.ops.linear_dw(dqkv, norm_output(c, w.norm, config_.norm_epsilon, saved.norm), dw.qkv);
  // 1. Norm, onto the residual path's gradient.
  c.ops.rms_norm_backward(dnormed, saved.norm.sum, w.norm, saved.norm.inv_rms, g, g, dw.norm);
}

Stream AttentionLayer::forward_cached(Context& c, const AttentionParameters<Tensor>& w, const Tensor& positions,
                                      const Stream& in, const Tensor& delta, const Tensor& keys, const Tensor& values,
                                      std::int64_t past) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t news = in.x.shape[0];
  AttentionShape s = shape({.batch = 1, .sequence = news});
  s.keys = past + news;
  NormSaved norm;
  const Tensor normed = norm_forward(c, in, w.norm, config_.norm_epsilon, norm);
  const Tensor qkv = c.scratch.tensor(c.compute, {news, s.qkv_width()});
  c.ops.linear(normed, c.weight(w.qkv), qkv);
  c.ops.rope(qkv, positions, inverse_frequencies_view(), s.head_size, s.heads + s.kv_heads, +1);
  const AttentionHeads fresh = packed_heads(s, qkv);
  const std::int64_t kv_width = s.kv_heads * s.head_size;
  c.ops.copy_columns(fresh.k, {keys.rows(past, news), 0}, kv_width);  // the newest go into the cache
  c.ops.copy_columns(fresh.v, {values.rows(past, news), 0}, kv_width);
  const Tensor attended = c.scratch.tensor(c.compute, {news, s.heads * s.head_size});
  c.ops.attention(s, {fresh.q, {keys, 0}, {values, 0}}, {}, attended, {});
  c.ops.linear(attended, c.weight(w.output), delta);
  return {norm.sum, delta};
}

}  // namespace dropcycle
