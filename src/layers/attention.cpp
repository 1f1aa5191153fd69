#include "dropcycle/layers/attention.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dropcycle/layers/context_parallel.hpp"
#include "dropcycle/layers/tensor_parallel.hpp"

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

AttentionLayer::AttentionLayer(const ModelConfig& config, const Groups& groups)
    : config_(config), inverse_frequencies_(rope_inverse_frequencies(config)) {
  require(config.heads % config.kv_heads == 0, "{} query heads on {} key/value heads", config.heads, config.kv_heads);
  require(config.head_size % 2 == 0, "head size {} is odd", config.head_size);
  Communicator& tp = groups[GroupKind::tp];
  if (config.heads % tp.size() != 0 || (config.kv_heads % tp.size() != 0 && tp.size() % config.kv_heads != 0)) {
    fail(Status::usage, "model.heads = {} and kv_heads = {} can't be shared by parallel.tensor = {} ranks",
         config.heads, config.kv_heads, tp.size());
  }
  heads_ = config.heads / tp.size();
  kv_heads_ = std::max<std::int64_t>(1, config.kv_heads / tp.size());
  sharers_ = std::max<std::int64_t>(1, tp.size() / config.kv_heads);
  first_kv_head_ = tp.rank() / sharers_ * kv_heads_;
  owner_ = tp.rank() % sharers_ == 0;
  if (tp.size() == 1) return;
  query_part_ = {0, tp.rank() * heads_ * config.head_size, heads_ * config.head_size};
  kv_part_ = {0, first_kv_head_ * config.head_size, kv_heads_ * config.head_size};
}

void AttentionLayer::declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const {
  const std::int64_t hidden = config_.hidden_size, q = config_.heads * config_.head_size,
                     kv = config_.kv_heads * config_.head_size;
  const std::string block = prefix + "attention.qkv";
  specs.push_back({.name = prefix + "attention_norm", .shape = {hidden}, .initial = Initial::ones, .role = Role::norm});
  specs.push_back({.name = prefix + "attention.query", .shape = {q, hidden}, .block = block, .part = query_part_});
  for (const char* name : {"attention.key", "attention.value"}) {
    specs.push_back({.name = prefix + name, .shape = {kv, hidden}, .block = block, .part = kv_part_, .owner = owner_});
  }
  specs.push_back({.name = prefix + "attention.output", .shape = {hidden, q}, .part = query_part_.along(1)});
}

AttentionShape AttentionLayer::shape(const Microbatch& batch) const {
  return {.batch = batch.batch,
          .sequence = batch.sequence,
          .heads = heads_,
          .kv_heads = kv_heads_,
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
  c.ops.linear(gather(c, normed), c.weight(w.qkv), saved.qkv);
  // 3. Rotary positions on queries and keys.
  c.ops.rope(saved.qkv, batch.positions, inverse_frequencies_view(), s.head_size, s.heads + s.kv_heads, +1);
  // 4. Attention.
  saved.attended = c.saved.tensor(c.compute, {tokens, s.heads * s.head_size});
  saved.lse = c.saved.tensor(c.acc(), {tokens, s.heads});
  sequence_attention(c, s, batch, saved.qkv, saved.attended, saved.lse);
  // 5. Output projection.
  scatter_sum(c, delta, [&](const Tensor& y) { c.ops.linear(saved.attended, c.weight(w.output), y); });
  return {saved.norm.sum, delta};
}

void AttentionLayer::backward(Context& c, const AttentionParameters<Tensor>& w, const AttentionParameters<Tensor>& dw,
                              const Microbatch& batch, const AttentionSaved& saved, const Tensor& g) const {
  const ArenaScope scope(c.scratch);
  const AttentionShape s = shape(batch);
  // 5. Output projection.
  const Tensor dy = gather(c, in_compute(c, g));
  const Tensor dattended = c.scratch.tensor(c.compute, saved.attended.shape);
  c.ops.linear_dx(dy, c.weight(w.output), dattended);
  c.ops.linear_dw(dy, saved.attended, dw.output);
  // 4. Attention.
  const Tensor dqkv = c.scratch.tensor(c.compute, saved.qkv.shape);
  sequence_attention_backward(c, s, batch, saved.qkv, saved.attended, saved.lse, dattended, dqkv);
  // 3. Rotary positions, turned back.
  c.ops.rope(dqkv, batch.positions, inverse_frequencies_view(), s.head_size, s.heads + s.kv_heads, -1);
  // 2. Query, key and value.
  const Tensor dnormed = c.scratch.tensor(c.acc(), g.shape);
  scatter_sum(c, dnormed, [&](const Tensor& dx) { c.ops.linear_dx(dqkv, c.weight(w.qkv), dx); });
  c.ops.linear_dw(dqkv, gather(c, norm_output(c, w.norm, config_.norm_epsilon, saved.norm)), dw.qkv);
  // 1. Norm, onto the residual path's gradient.
  c.ops.rms_norm_backward(dnormed, saved.norm.sum, w.norm, saved.norm.inv_rms, g, g, dw.norm);
}

void AttentionLayer::sum_shared_heads(Context& c, const AttentionParameters<Tensor>& dw) const {
  if (sharers_ == 1) return;
  const ArenaScope scope(c.scratch);
  // Key and value rows of this rank's head, at that head's place among zeros.
  const Tensor own = dw.qkv.rows(heads_ * config_.head_size, 2 * config_.head_size);
  const Tensor all = c.scratch.tensor(own.dtype, {config_.kv_heads, own.shape[0], own.shape[1]});
  c.ops.fill_zero(all);
  c.ops.convert(own, all[first_kv_head_]);
  c.groups[GroupKind::tp].all_reduce(all);
  c.ops.convert(all[first_kv_head_], own);
}

Stream AttentionLayer::forward_cached(Context& c, const AttentionParameters<Tensor>& w, const Tensor& positions,
                                      const Stream& in, const Tensor& delta, const Tensor& keys, const Tensor& values,
                                      std::int64_t past) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t news = positions.shape[0];
  AttentionShape s = shape({.batch = 1, .sequence = news});
  s.keys = past + news;
  NormSaved norm;
  const Tensor normed = norm_forward(c, in, w.norm, config_.norm_epsilon, norm);
  const Tensor qkv = c.scratch.tensor(c.compute, {news, s.qkv_width()});
  c.ops.linear(gather(c, normed), c.weight(w.qkv), qkv);
  c.ops.rope(qkv, positions, inverse_frequencies_view(), s.head_size, s.heads + s.kv_heads, +1);
  const AttentionHeads fresh = packed_heads(s, qkv);
  const std::int64_t kv_width = s.kv_heads * s.head_size;
  c.ops.copy_columns(fresh.k, {keys.rows(past, news), 0}, kv_width);  // the newest go into the cache
  c.ops.copy_columns(fresh.v, {values.rows(past, news), 0}, kv_width);
  const Tensor attended = c.scratch.tensor(c.compute, {news, s.heads * s.head_size});
  c.ops.attention(s, {fresh.q, {keys, 0}, {values, 0}}, {}, attended, {});
  scatter_sum(c, delta, [&](const Tensor& y) { c.ops.linear(attended, c.weight(w.output), y); });
  return {norm.sum, delta};
}

}  // namespace dropcycle
