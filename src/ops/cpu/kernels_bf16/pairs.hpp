// Pairs of bf16 as vdpbf16ps and the matrix units take them, for products of either.
#pragma once

#include "../kernels/vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

constexpr std::int64_t kDotRows = 4;  // up to so many rows are dotted with weights as they lie

inline __m512i load_pairs(const Bf16* from) { return _mm512_loadu_si512(from); }
// The first `elements` of 32, zeros behind them.
inline __m512i load_pairs(const Bf16* from, std::int64_t elements) {
  if (elements >= 32) return load_pairs(from);
  return _mm512_maskz_loadu_epi16(elements <= 0 ? 0 : (1U << elements) - 1, from);
}

// Pairs of 32 neighbouring columns of two rows: the first 16 and the last 16.
struct Woven {
  __m512i low, high;
};
inline Woven weave(__m512i even, __m512i odd) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  return {_mm512_permutex2var_epi16(even, low, odd), _mm512_permutex2var_epi16(even, high, odd)};
}

// Rows that lie a page or more apart aren't fetched ahead by the processor: they come into the second-level cache.
constexpr std::int64_t kRowsAhead = 32;

// f(pair of rows, first column, Woven) over `k` rows (an odd one meets zeros) and `columns` of x.
template <class F>
void weave_rows(const Bf16* x, std::int64_t stride, std::int64_t k, std::int64_t columns, F&& f) {
  for (std::int64_t row = 0; row < k; row += 2) {
    const Bf16* even = x + row * stride;
    for (std::int64_t column = 0; column < columns; column += 32) {
      __builtin_prefetch(even + kRowsAhead * stride + column, 0, 2);
      __builtin_prefetch(even + (kRowsAhead + 1) * stride + column, 0, 2);
      const std::int64_t left = columns - column;
      const __m512i odd = row + 1 < k ? load_pairs(even + stride + column, left) : _mm512_setzero_si512();
      f(row / 2, column, weave(load_pairs(even + column, left), odd));
    }
  }
}

// One row times kLanes columns of w [n, k] as they lie, one after another as memory likes it: a vector of sums for each
// column, then the sums over lanes.
inline Vector dots(const Bf16* a, const Bf16* w, std::int64_t stride, std::int64_t k) {
  Vector sums[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) {
    const Bf16* column = w + i * stride;
    __m512 sum = _mm512_setzero_ps();
    std::int64_t at = 0;
    for (; at + 32 <= k; at += 32)
      sum = _mm512_dpbf16_ps(sum, (__m512bh)load_pairs(a + at), (__m512bh)load_pairs(column + at));
    if (at < k)
      sum = _mm512_dpbf16_ps(sum, (__m512bh)load_pairs(a + at, k - at), (__m512bh)load_pairs(column + at, k - at));
    sums[i] = (Vector)sum;
  }
  IntVector square[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) square[i] = (IntVector)sums[i];
  transpose(square);
  Vector total{};
  for (std::int64_t i = 0; i < kLanes; ++i) total += (Vector)square[i];
  return total;
}

// Few rows: nothing is packed.
inline void multiply_by_dots(const Bf16Sizes& sizes, const Bf16Task& task) {
  for (std::int64_t column = 0; column < task.columns; column += kLanes) {
    const Bf16* w = static_cast<const Bf16*>(task.b) + column * sizes.b_stride;
    for (std::int64_t r = 0; r < task.rows; ++r) {
      const Vector y = dots(static_cast<const Bf16*>(task.a) + r * sizes.a_stride, w, sizes.b_stride, task.k);
      const std::int64_t at = r * sizes.c_stride + column;
      if (sizes.c_type == Type::bf16) {
        store_vector(static_cast<Bf16*>(task.c) + at, y);
      } else {
        store_vector(static_cast<float*>(task.c) + at, y);
      }
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
