// Forward attention of one block of queries, and the loop over all of them. See attention.hpp.
#pragma once

#include "attention.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

constexpr float kMasked = -1e30F;  // finite: a row whose first keys are all masked is wiped by its first real score

template <class Dot>
struct ForwardScratch {
  typename Dot::Element* queries;        // [kBlock, d]
  typename Dot::Element* probabilities;  // [kBlock, kBlock]
  float* scores;                         // [kBlock, kBlock]
  float* sums;                           // [kBlock, d_columns]
  float* largest;                        // [kBlock]
  float* total;                          // [kBlock]
  ForwardScratch(Pieces& pieces, const Padded& p)
      : queries(pieces.take<typename Dot::Element>(kBlock * p.d)),
        probabilities(pieces.take<typename Dot::Element>(kBlock * kBlock)),
        scores(pieces.take<float>(kBlock * kBlock)),
        sums(pieces.take<float>(kBlock * p.d_columns)),
        largest(pieces.take<float>(kBlock)),
        total(pieces.take<float>(kBlock)) {}
};

// One row of scores: new maximum, probabilities, and the factor by which the sums so far shrink.
template <class Dot>
float softmax_row(const float* scores, typename Dot::Element* probabilities, float scale, float& largest,
                  float& total) {
  float best = scores[0];
#pragma omp simd reduction(max : best)
  for (std::int64_t j = 0; j < kBlock; ++j) best = scores[j] > best ? scores[j] : best;
  best *= scale;
  best = best > largest ? best : largest;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < kBlock; ++j) {
    const float p = exp_fast(scores[j] * scale - best);
    sum += p;
    probabilities[j] = Dot::element(p);
  }
  const float shrink = exp_fast(largest - best);
  largest = best;
  total = total * shrink + sum;
  return shrink;
}

// Queries [first, first + count) of one head against keys that are packed already.
template <class Dot, class T>
void forward_block(const AttentionArguments& a, const Padded& p, const ForwardScratch<Dot>& s, std::int64_t sequence,
                   std::int64_t head, std::int64_t first, const typename Dot::Element* keys,
                   const typename Dot::Element* values) {
  const std::int64_t count = smaller(kBlock, a.queries - first);
  const std::int64_t row = sequence * a.queries + first;
  const auto* q = static_cast<const T*>(a.q) + row * a.q_stride + head * a.head_size;
  copy_rows<Dot>(q, a.q_stride, count, count, a.head_size, p.d, s.queries);
  for (std::int64_t r = 0; r < count; ++r) {
    s.largest[r] = kMasked;
    s.total[r] = 0;
  }
  for (std::int64_t i = 0; i < count * p.d_columns; ++i) s.sums[i] = 0;
  const std::int64_t offset = a.keys - a.queries;  // place of query 0
  const std::int32_t* first_key = a.first_key == nullptr ? nullptr : a.first_key + row;
  std::int64_t lowest = first_key == nullptr ? 0 : first_key[0];
  std::int64_t highest = lowest;
  for (std::int64_t r = 1; first_key != nullptr && r < count; ++r) {
    lowest = smaller(lowest, first_key[r]);
    highest = larger(highest, first_key[r]);
  }
  for (std::int64_t key = lowest / kBlock * kBlock; key < offset + first + count; key += kBlock) {
    multiply<Dot>(s.queries, p.d, keys + key * p.d, p.d, s.scores, kBlock, count, kBlock, false);
    const bool masked = key + kBlock > offset + first + 1 || key < highest;
    for (std::int64_t r = 0; r < count; ++r) {
      float* scores = s.scores + r * kBlock;
      if (masked) {
        const std::int64_t from = first_key == nullptr ? 0 : first_key[r] - key;
        const std::int64_t last = offset + first + r - key;
        for (std::int64_t j = 0; j < kBlock; ++j) scores[j] = j < from || j > last ? kMasked : scores[j];
      }
      const float shrink = softmax_row<Dot>(scores, s.probabilities + r * kBlock, a.scale, s.largest[r], s.total[r]);
      float* sums = s.sums + r * p.d_columns;
#pragma omp simd
      for (std::int64_t i = 0; i < p.d_columns; ++i) sums[i] *= shrink;
    }
    multiply<Dot>(s.probabilities, kBlock, values + key * p.d_columns, kBlock, s.sums, p.d_columns, count, p.d_columns,
                  true);
  }
  for (std::int64_t r = 0; r < count; ++r) {
    auto* out = static_cast<T*>(a.out) + ((row + r) * a.heads + head) * a.head_size;
    const float inverse = 1.0F / s.total[r];
    const float* sums = s.sums + r * p.d_columns;
#pragma omp simd
    for (std::int64_t i = 0; i < a.head_size; ++i) store(out[i], sums[i] * inverse);
    if (a.lse != nullptr) a.lse[(row + r) * a.heads + head] = s.largest[r] + __builtin_logf(s.total[r]);
  }
}

template <class Dot>
std::int64_t forward_scratch_bytes(const AttentionArguments& a, std::int64_t threads) {
  const auto p = Padded::of<Dot>(a);
  Pieces pieces(nullptr);
  const ForwardScratch<Dot> scratch(pieces, p);
  static_cast<void>(scratch);
  const std::int64_t per_thread = pieces.bytes();
  Pieces packed(nullptr);
  packed.take<typename Dot::Element>(a.batch * a.kv_heads * p.keys * p.d);
  packed.take<typename Dot::Element>(a.batch * a.kv_heads * p.keys * p.d_columns);
  return threads * per_thread + packed.bytes();
}

template <class Dot, class T>
void forward(const AttentionArguments& a) {
  using Element = typename Dot::Element;
  const auto p = Padded::of<Dot>(a);
  const std::int64_t pairs = a.batch * a.kv_heads;
  const std::int64_t group = a.heads / a.kv_heads;
  const std::int64_t blocks = ceil_div(a.queries, kBlock);
  Pieces pieces(a.scratch);
  auto* packed_keys = pieces.take<Element>(pairs * p.keys * p.d);
  auto* packed_values = pieces.take<Element>(pairs * p.keys * p.d_columns);
#pragma omp parallel
  {
    Pieces own = pieces;
    for (int thread = 0; thread < omp_get_thread_num(); ++thread) ForwardScratch<Dot>(own, p);
    const ForwardScratch<Dot> scratch(own, p);
#pragma omp for schedule(static)
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      const std::int64_t at = pair / a.kv_heads * a.keys * a.kv_stride + pair % a.kv_heads * a.head_size;
      pack_columns<Dot>(static_cast<const T*>(a.k) + at, a.kv_stride, a.keys, p.keys, a.head_size, p.d,
                        packed_keys + pair * p.keys * p.d);
      pack_rows<Dot>(static_cast<const T*>(a.v) + at, a.kv_stride, a.keys, p.keys, a.head_size, p.d_columns,
                     packed_values + pair * p.keys * p.d_columns);
    }
    // The last blocks have the most keys: they come first.
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < pairs * group * blocks; ++task) {
      const std::int64_t block = blocks - 1 - task % blocks;
      const std::int64_t pair = task / blocks / group;
      const std::int64_t head = pair % a.kv_heads * group + task / blocks % group;
      forward_block<Dot, T>(a, p, scratch, pair / a.kv_heads, head, block * kBlock, packed_keys + pair * p.keys * p.d,
                            packed_values + pair * p.keys * p.d_columns);
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
