// Causal grouped-query attention in blocks (after Dao et al., "FlashAttention", 2022): a block of kBlock queries meets
// one block of kBlock keys at a time, so that no more than kBlock x kBlock scores exist per thread.
//
// The products of blocks are written here once for two kinds of numbers, `Dot`: float with multiply-add (every
// instruction set) and bf16 pairs with vdpbf16ps (attention_bf16.cpp). The left operand is row-major; the right one is
// packed in panels of kPanel columns, [panel][k / kPair][kPanel][kPair].
#pragma once

#include <omp.h>

#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kVectorsPerPanel = 4;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kVectorsPerPanel = 2;
#else
constexpr int kVectorBytes = 16, kVectorsPerPanel = 2;
#endif
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef float UnalignedVector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
constexpr std::int64_t kLanes = kVectorBytes / 4;
constexpr std::int64_t kPanel = kLanes * kVectorsPerPanel;
constexpr std::int64_t kRowsPerTile = 6;
constexpr std::int64_t kBlock = 64;  // a multiple of kPanel
static_assert(kBlock % kPanel == 0);

constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }
constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

struct FloatDot {
  using Element = float;
  using Operand = Vector;
  static constexpr std::int64_t kPair = 1;
  static Operand packed(const float* b) { return *reinterpret_cast<const UnalignedVector*>(b); }
  static Operand spread(const float* a) { return Vector{} + *a; }
  static Vector multiply_add(Operand a, Operand b, Vector sum) { return sum + a * b; }
  static float element(float value) { return value; }
};

// c[kRows, kPanel] = or += a[kRows, k] panel[k, kPanel]
template <class Dot, int kRows>
void tile(const typename Dot::Element* a, std::int64_t lda, const typename Dot::Element* panel, std::int64_t k,
          float* c, std::int64_t ldc, bool accumulate) {
  Vector sums[kRows][kVectorsPerPanel];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsPerPanel; ++v) {
      sums[r][v] = accumulate ? *reinterpret_cast<const UnalignedVector*>(c + r * ldc + v * kLanes) : Vector{};
    }
  }
  for (std::int64_t at = 0; at < k; at += Dot::kPair) {
    typename Dot::Operand right[kVectorsPerPanel];
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsPerPanel; ++v) right[v] = Dot::packed(panel + at * kPanel + v * kLanes * Dot::kPair);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Dot::Operand left = Dot::spread(a + r * lda + at);
#pragma GCC unroll 8
      for (int v = 0; v < kVectorsPerPanel; ++v) sums[r][v] = Dot::multiply_add(left, right[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsPerPanel; ++v) {
      *reinterpret_cast<UnalignedVector*>(c + r * ldc + v * kLanes) = sums[r][v];
    }
  }
}

// c[rows, columns] = or += a[rows, k] b[k, columns]; columns a multiple of kPanel, k of kPair.
template <class Dot>
void multiply(const typename Dot::Element* a, std::int64_t lda, const typename Dot::Element* b, std::int64_t k,
              float* c, std::int64_t ldc, std::int64_t rows, std::int64_t columns, bool accumulate) {
  for (std::int64_t column = 0; column < columns; column += kPanel) {
    const auto* panel = b + column * k;
    std::int64_t r = 0;
    for (; r + kRowsPerTile <= rows; r += kRowsPerTile) {
      tile<Dot, kRowsPerTile>(a + r * lda, lda, panel, k, c + r * ldc + column, ldc, accumulate);
    }
    const auto* left = a + r * lda;
    float* out = c + r * ldc + column;
    switch (rows - r) {
      case 5:
        tile<Dot, 5>(left, lda, panel, k, out, ldc, accumulate);
        break;
      case 4:
        tile<Dot, 4>(left, lda, panel, k, out, ldc, accumulate);
        break;
      case 3:
        tile<Dot, 3>(left, lda, panel, k, out, ldc, accumulate);
        break;
      case 2:
        tile<Dot, 2>(left, lda, panel, k, out, ldc, accumulate);
        break;
      case 1:
        tile<Dot, 1>(left, lda, panel, k, out, ldc, accumulate);
        break;
      default:
        break;
    }
  }
}

// Rows of x (row stride `stride`) as a left operand [padded, d_padded]; what is padded is zero.
template <class Dot, class T>
void copy_rows(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
               std::int64_t d_padded, typename Dot::Element* out) {
  for (std::int64_t r = 0; r < padded; ++r) {
    for (std::int64_t i = 0; i < d_padded; ++i) {
      out[r * d_padded + i] = r < rows && i < d ? Dot::element(load(x[r * stride + i])) : typename Dot::Element{};
    }
  }
}

// The same rows transposed, as a left operand [d_padded, padded].
template <class Dot, class T>
void copy_transposed(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
                     std::int64_t d_padded, typename Dot::Element* out) {
  for (std::int64_t i = 0; i < d_padded; ++i) {
    for (std::int64_t r = 0; r < padded; ++r) {
      out[i * padded + r] = r < rows && i < d ? Dot::element(load(x[r * stride + i])) : typename Dot::Element{};
    }
  }
}

// Rows of x as the columns of a right operand, k = d: xᵀ [d_padded, padded].
template <class Dot, class T>
void pack_columns(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
                  std::int64_t d_padded, typename Dot::Element* out) {
  constexpr std::int64_t kPair = Dot::kPair;
  for (std::int64_t r = 0; r < padded; ++r) {
    auto* column = out + (r / kPanel) * kPanel * d_padded + (r % kPanel) * kPair;
    for (std::int64_t i = 0; i < d_padded; ++i) {
      column[(i / kPair) * kPanel * kPair + i % kPair] =
          r < rows && i < d ? Dot::element(load(x[r * stride + i])) : typename Dot::Element{};
    }
  }
}

// Rows of x as the rows of right operands, one per block of kBlock rows: [block][k = kBlock, d_columns].
template <class Dot, class T>
void pack_rows(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
               std::int64_t d_columns, typename Dot::Element* out) {
  constexpr std::int64_t kPair = Dot::kPair;
  for (std::int64_t r = 0; r < padded; ++r) {
    auto* block = out + (r / kBlock) * kBlock * d_columns;
    const std::int64_t in_block = r % kBlock;
    for (std::int64_t i = 0; i < d_columns; ++i) {
      block[(i / kPanel) * kPanel * kBlock + (in_block / kPair) * kPanel * kPair + (i % kPanel) * kPair +
            in_block % kPair] = r < rows && i < d ? Dot::element(load(x[r * stride + i])) : typename Dot::Element{};
    }
  }
}

// Hands out pieces of one allocation, each at a multiple of 64 bytes.
class Pieces {
 public:
  explicit Pieces(void* memory) : next_(reinterpret_cast<std::uintptr_t>(memory)) {}
  template <class T>
  T* take(std::int64_t count) {
    auto* piece = reinterpret_cast<T*>(next_);
    next_ += static_cast<std::uintptr_t>(round_up(count * static_cast<std::int64_t>(sizeof(T)), 64));
    return piece;
  }
  // Of pieces that began at null: the bytes taken.
  std::int64_t bytes() const { return static_cast<std::int64_t>(next_); }

 private:
  std::uintptr_t next_;
};

// Sizes as padded for the tiles.
struct Padded {
  std::int64_t queries, keys, d, d_columns;
  template <class Dot>
  static Padded of(const AttentionArguments& a) {
    return {round_up(a.queries, kBlock), round_up(a.keys, kBlock), round_up(a.head_size, Dot::kPair),
            round_up(a.head_size, kPanel)};
  }
};

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
