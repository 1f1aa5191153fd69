#include "dropcycle/model/cost.hpp"

namespace dropcycle {
namespace {

struct Pieces {
  std::int64_t embedding, attention, ffn, router, norms;
};

Pieces pieces(const ModelConfig& c) {
  const std::int64_t q = c.heads * c.head_size, kv = c.kv_heads * c.head_size;
  return {.embedding = c.vocab_size * c.hidden_size,
          .attention = c.hidden_size * (2 * q + 2 * kv),
          .ffn = 3 * c.hidden_size * c.intermediate_size,
          .router = c.experts * c.hidden_size,
          .norms = 2 * c.hidden_size};
}

}  // namespace

ParameterCount count_parameters(const ModelConfig& c) {
  const Pieces p = pieces(c);
  const std::int64_t shared =
      (c.tie_embeddings ? 1 : 2) * p.embedding + c.hidden_size + c.layers * (p.attention + p.router + p.norms);
  return {.total = shared + c.layers * p.ffn * (c.is_moe() ? c.experts : 1),
          .active = shared + c.layers * p.ffn * (c.is_moe() ? c.experts_per_token : 1)};
}

double forward_flops_table3(const ModelConfig& c, std::int64_t sequence) {
  const auto s = static_cast<double>(sequence), h = static_cast<double>(c.hidden_size);
  const auto d = static_cast<double>(c.head_size), nq = static_cast<double>(c.heads);
  const auto nkv = static_cast<double>(c.kv_heads), f = static_cast<double>(c.intermediate_size);
  const double used = c.is_moe() ? static_cast<double>(c.experts_per_token) : 1;
  const double attention = 4 * s * h * d * nkv + 2 * s * h * d * nq + 4 * s * s * d * nq + 2 * s * d * nq * h;
  const double ffn = used * (4 * s * h * f + 2 * s * f * h);
  return 4 * s * static_cast<double>(c.vocab_size) * h + static_cast<double>(c.layers) * (attention + ffn);
}

double training_flops_per_token(const ModelConfig& c, std::int64_t sequence) {
  const Pieces p = pieces(c);
  const std::int64_t layer = p.attention + p.router + p.ffn * (c.is_moe() ? c.experts_per_token : 1);
  const double products = 2.0 * static_cast<double>(c.layers * layer + p.embedding);
  const double attention = 2.0 * static_cast<double>(c.layers * c.heads * c.head_size * sequence);  // 4 S D Nq / 2
  return 3 * (products + attention);
}

}  // namespace dropcycle
