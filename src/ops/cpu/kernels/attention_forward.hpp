// Forward attention of one block of queries, and the loop over all of them. See attention.hpp.
#pragma once

#include "attention.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

constexpr float kMasked = -1e30F;  // finite: a row whose first keys are all masked is wiped by its first real score

// Of one row so far: its largest score, and the sums of the probabilities as they are (for lse) and as they are stored
// (what multiplies the values must add up to 1).
struct RowSums {
  float largest = kMasked, exact = 0, stored = 0;
};

template <class Dot>
struct ForwardScratch {
  typename Dot::Element* queries;        // [kBlock, d]
  typename Dot::Element* probabilities;  // [kBlock, kBlock]
  float* scores;                         // [kBlock, kBlock]
  float* sums;                           // [kBlock, d_columns]
  RowSums* rows;                         // [kBlock]
  ForwardScratch(Pieces& pieces, const Padded& p)
      : queries(pieces.take<typename Dot::Element>(kBlock * p.d)),
        probabilities(pieces.take<typename Dot::Element>(kBlock * kBlock)),
        scores(pieces.take<float>(kBlock * kBlock)),
        sums(pieces.take<float>(kBlock * p.d_columns)),
        rows(pieces.take<RowSums>(kBlock)) {}
};

// Keys [from, last] of a block are open to a row; last < from: none is.
struct Open {
  std::int32_t from, last;
};

inline Vector masked(Vector scores, Open open, std::int64_t first_lane) {
  const IntVector key = lane_numbers() + static_cast<std::int32_t>(first_lane);
  return (key >= open.from) & (key <= open.last) ? scores : Vector{} + kMasked;
}

// One row of scores: new maximum, probabilities, and the factor by which the sums so far shrink.
template <class Dot>
float softmax_row(const float* scores, typename Dot::Element* probabilities, float scale, Open open, RowSums& row) {
  Vector values[kVectorsPerBlock];
  Vector best = Vector{} + row.largest;
#pragma GCC unroll 16
  for (std::int64_t v = 0; v < kVectorsPerBlock; ++v) {
    values[v] = load_vector(scores + v * kLanes) * scale;
    if (open.from > 0 || open.last < kBlock - 1) values[v] = masked(values[v], open, v * kLanes);
    best = larger(values[v], best);
  }
  const float top = across(best, [](Vector a, Vector b) { return larger(a, b); });
  Vector exact{}, stored{};
#pragma GCC unroll 16
  for (std::int64_t v = 0; v < kVectorsPerBlock; ++v) {
    const Vector p = Dot::exp(values[v] - top);
    Dot::store(probabilities + v * kLanes, p);
    exact += p;
    stored += Dot::stored(probabilities + v * kLanes);
  }
  const auto add = [](Vector a, Vector b) { return a + b; };
  const float shrink = exp_fast(row.largest - top);
  row = {top, row.exact * shrink + across(exact, add), row.stored * shrink + across(stored, add)};
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
  const std::int64_t rows = round_up(count, Dot::kRowStep);
  copy_rows<Dot>(q, a.q_stride, count, rows, a.head_size, p.d, s.queries);
  for (std::int64_t r = 0; r < count; ++r) s.rows[r] = {};
  for (std::int64_t i = 0; i < count * p.d_columns; ++i) s.sums[i] = 0;
  const KeyRanges see(a, sequence, first, count);
  for (std::int64_t key = see.lowest_first / kBlock * kBlock; key <= see.highest_last; key += kBlock) {
    multiply<Dot>({s.queries, p.d, Dot::kPair}, keys + key * p.d, p.d, s.scores, kBlock, rows, kBlock, false);
    for (std::int64_t r = 0; r < count; ++r) {
      const Open open{static_cast<std::int32_t>(see.first(r) - key),
                      static_cast<std::int32_t>(smaller(kBlock - 1, see.last(r) - key))};
      const float shrink =
          softmax_row<Dot>(s.scores + r * kBlock, s.probabilities + r * kBlock, a.scale, open, s.rows[r]);
      float* sums = s.sums + r * p.d_columns;
      for (std::int64_t i = 0; i < p.d_columns; i += kLanes) store_vector(sums + i, load_vector(sums + i) * shrink);
    }
    multiply<Dot>({s.probabilities, kBlock, Dot::kPair}, values + key * p.d_columns, kBlock, s.sums, p.d_columns, rows,
                  p.d_columns, true);
  }
  for (std::int64_t r = 0; r < count; ++r) {
    auto* out = static_cast<T*>(a.out) + ((row + r) * a.heads + head) * a.head_size;
    const float inverse = 1.0F / s.rows[r].stored;
    const float* sums = s.sums + r * p.d_columns;
#pragma omp simd
    for (std::int64_t i = 0; i < a.head_size; ++i) store(out[i], sums[i] * inverse);
    if (a.lse != nullptr) a.lse[(row + r) * a.heads + head] = s.rows[r].largest + __builtin_logf(s.rows[r].exact);
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
    [[maybe_unused]] const typename Dot::Region region{};
#pragma omp for schedule(static)
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      const std::int64_t row = pair / a.kv_heads * a.keys, column = pair % a.kv_heads * a.head_size;
      pack_columns<Dot>(static_cast<const T*>(a.k) + row * a.k_stride + column, a.k_stride, a.keys, p.keys, a.head_size,
                        p.d, packed_keys + pair * p.keys * p.d);
      pack_rows<Dot>(static_cast<const T*>(a.v) + row * a.v_stride + column, a.v_stride, a.keys, p.keys, a.head_size,
                     p.d_columns, packed_values + pair * p.keys * p.d_columns);
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
