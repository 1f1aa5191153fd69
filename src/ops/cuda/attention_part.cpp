#include "attention.hpp"

namespace dropcycle::cuda {
namespace {

// Memory of the backward pass of a part, in bytes: cuDNN's own and what its graph writes down.
double backward_bytes(const AttentionShape& s, std::int64_t sequences, std::int64_t kv_heads, bool deterministic) {
  const auto heads = static_cast<double>(sequences * kv_heads * (s.heads / s.kv_heads));
  const auto rows = static_cast<double>((s.sequence + 127) / 128 * 128);  // in whole tiles
  const double sums = 4 * heads * rows * static_cast<double>(s.head_size);
  return deterministic ? 2 * heads * rows * rows + sums : 2 * sums;
}

std::int64_t largest_divisor(std::int64_t count, const auto& fits) {
  for (std::int64_t part = count; part > 0; --part) {
    if (count % part == 0 && fits(part)) return part;
  }
  return 0;
}

}  // namespace

AttentionPart attention_part(const AttentionShape& s, bool deterministic, double most_bytes) {
  const auto fits = [&](std::int64_t sequences, std::int64_t kv_heads) {
    return backward_bytes(s, sequences, kv_heads, deterministic) <= most_bytes;
  };
  const std::int64_t sequences = largest_divisor(s.batch, [&](std::int64_t n) { return fits(n, s.kv_heads); });
  if (sequences > 0) return {sequences, s.kv_heads};
  return {1, largest_divisor(s.kv_heads, [&](std::int64_t n) { return fits(1, n); })};
}

}  // namespace dropcycle::cuda
