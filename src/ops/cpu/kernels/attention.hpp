// Causal grouped-query attention in blocks (after Dao et al., "FlashAttention", 2022): a block of kBlock queries meets
// one block of kBlock keys at a time, so that no more than kBlock x kBlock scores exist per thread.
//
// The products of blocks are written here once for two kinds of numbers, `Dot`: float with multiply-add (every
// instruction set) and bf16 pairs with vdpbf16ps (attention_bf16.cpp). Matrix units bring their own (`kTiles`,
// attention_amx.cpp), take kRowStep rows and kDepthStep of k at a time, and are set up by a `Region`. The left operand
// is row-major; the right one is packed in panels of kPanel columns, [panel][k / kPair][kPanel][kPair].
#pragma once

#include <omp.h>

#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

#if defined(__AVX512F__)
constexpr int kVectorsPerPanel = 4;
#else
constexpr int kVectorsPerPanel = 2;
#endif
constexpr std::int64_t kPanel = kLanes * kVectorsPerPanel;
constexpr std::int64_t kRowsPerTile = 6;
constexpr std::int64_t kBlock = 64;  // a multiple of kPanel
static_assert(kBlock % kPanel == 0);

constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }
inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

constexpr std::int64_t kVectorsPerBlock = kBlock / kLanes;

// Products by vector instructions, any number of rows at a time; nothing to set up.
struct VectorProducts {
  static constexpr bool kTiles = false;
  static constexpr std::int64_t kRowStep = 1;
  struct Region {};
};

struct FloatDot : VectorProducts {
  using Element = float;
  static constexpr std::int64_t kDepthStep = 1;
  using Operand = Vector;
  static constexpr std::int64_t kPair = 1;
  static Operand packed(const float* b) { return load_vector(b); }
  static Operand spread(const float* a) { return Vector{} + *a; }
  static Vector multiply_add(Operand a, Operand b, Vector sum) { return sum + a * b; }
  template <class T>
  static float element(T value) {
    return load(value);
  }
  static void store(float* out, Vector value) { store_vector(out, value); }
  static Vector stored(const float* from) { return load_vector(from); }
  // kPair rows of a right operand: lane i of row j becomes out[i * kPair + j].
  static void store_pairs(float* out, const Vector* rows) { store_vector(out, rows[0]); }
  static Vector exp(Vector x) { return exp_vector(x); }
};

// A left operand: element (r, k) lies at data[r * row_step + k / kPair * pair_step + k % kPair].
template <class Dot>
struct Left {
  const typename Dot::Element* data;
  std::int64_t row_step, pair_step;
};

// c[kRows, kPanel] = or += a[kRows, k] panel[k, kPanel]
template <class Dot, int kRows>
void tile(const Left<Dot>& a, const typename Dot::Element* panel, std::int64_t k, float* c, std::int64_t ldc,
          bool accumulate) {
  Vector sums[kRows][kVectorsPerPanel];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsPerPanel; ++v) {
      sums[r][v] = accumulate ? load_vector(c + r * ldc + v * kLanes) : Vector{};
    }
  }
  const auto* left = a.data;
  for (std::int64_t at = 0; at < k; at += Dot::kPair) {
    typename Dot::Operand right[kVectorsPerPanel];
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsPerPanel; ++v) right[v] = Dot::packed(panel + at * kPanel + v * kLanes * Dot::kPair);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Dot::Operand both = Dot::spread(left + r * a.row_step);
#pragma GCC unroll 8
      for (int v = 0; v < kVectorsPerPanel; ++v) sums[r][v] = Dot::multiply_add(both, right[v], sums[r][v]);
    }
    left += a.pair_step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsPerPanel; ++v) store_vector(c + r * ldc + v * kLanes, sums[r][v]);
  }
}

// c[rows, columns] = or += a[rows, k] b[k, columns]; columns a multiple of kPanel, k of kPair.
template <class Dot>
void multiply_by_vectors(const Left<Dot>& a, const typename Dot::Element* b, std::int64_t k, float* c, std::int64_t ldc,
                         std::int64_t rows, std::int64_t columns, bool accumulate) {
  for (std::int64_t column = 0; column < columns; column += kPanel) {
    const auto* panel = b + column * k;
    const auto at = [&](std::int64_t r) { return Left<Dot>{a.data + r * a.row_step, a.row_step, a.pair_step}; };
    std::int64_t r = 0;
    for (; r + kRowsPerTile <= rows; r += kRowsPerTile) {
      tile<Dot, kRowsPerTile>(at(r), panel, k, c + r * ldc + column, ldc, accumulate);
    }
    float* out = c + r * ldc + column;
    switch (rows - r) {
      case 5:
        tile<Dot, 5>(at(r), panel, k, out, ldc, accumulate);
        break;
      case 4:
        tile<Dot, 4>(at(r), panel, k, out, ldc, accumulate);
        break;
      case 3:
        tile<Dot, 3>(at(r), panel, k, out, ldc, accumulate);
        break;
      case 2:
        tile<Dot, 2>(at(r), panel, k, out, ldc, accumulate);
        break;
      case 1:
        tile<Dot, 1>(at(r), panel, k, out, ldc, accumulate);
        break;
      default:
        break;
    }
  }
}

// The same by what Dot multiplies with; k a multiple of kDepthStep, rows padded to one of kRowStep.
template <class Dot>
void multiply(const Left<Dot>& a, const typename Dot::Element* b, std::int64_t k, float* c, std::int64_t ldc,
              std::int64_t rows, std::int64_t columns, bool accumulate) {
  if constexpr (Dot::kTiles) {
    Dot::multiply(a, b, k, c, ldc, rows, columns, accumulate);
  } else {
    multiply_by_vectors<Dot>(a, b, k, c, ldc, rows, columns, accumulate);
  }
}

// Rows of x (row stride `stride`) as a left operand [padded, d_padded]; what is padded is zero.
template <class Dot, class T>
void copy_rows(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
               std::int64_t d_padded, typename Dot::Element* out) {
  for (std::int64_t r = 0; r < padded; ++r) {
    const std::int64_t filled = r < rows ? d : 0;
    for (std::int64_t i = 0; i < filled; ++i) out[r * d_padded + i] = Dot::element(x[r * stride + i]);
    for (std::int64_t i = filled; i < d_padded; ++i) out[r * d_padded + i] = {};
  }
}

// Rows of x as the columns of a right operand, k = d: xᵀ [d_padded, padded]. A square of kLanes rows and as many groups
// of kPair elements (32 bits) is transposed at a time.
template <class Dot, class T>
void pack_columns(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
                  std::int64_t d_padded, typename Dot::Element* out) {
  using Element = typename Dot::Element;
  constexpr std::int64_t kWide = kLanes * Dot::kPair;
  static_assert(sizeof(Element) * Dot::kPair == 4);
  for (std::int64_t r = 0; r < padded; r += kLanes) {
    Element* column = out + (r / kPanel) * kPanel * d_padded + (r % kPanel) * Dot::kPair;
    for (std::int64_t first = 0; first < d_padded; first += kWide) {
      IntVector square[kLanes];
      const std::int64_t filled = smaller(kWide, d - first);
      for (std::int64_t i = 0; i < kLanes; ++i) {
        Element row[kWide] = {};
        if (r + i < rows) {
          const T* from = x + (r + i) * stride + first;
          if (filled == kWide) {
            for (std::int64_t c = 0; c < kWide; ++c) row[c] = Dot::element(from[c]);
          } else {
            for (std::int64_t c = 0; c < filled; ++c) row[c] = Dot::element(from[c]);
          }
        }
        __builtin_memcpy(&square[i], row, sizeof(square[i]));
      }
      transpose(square);
      const std::int64_t groups = smaller(kWide, d_padded - first) / Dot::kPair;
      for (std::int64_t i = 0; i < groups; ++i) {
        __builtin_memcpy(column + (first + i * Dot::kPair) * kPanel, &square[i], sizeof(square[i]));
      }
    }
  }
}

// Rows of x in pairs: element (r, i) at out[(r / kPair * d_padded + i) * kPair + r % kPair]. As a left operand this is
// xᵀ with row_step kPair and pair_step d_padded * kPair.
template <class Dot, class T>
void pair_rows(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
               std::int64_t d_padded, typename Dot::Element* out) {
  using Element = typename Dot::Element;
  constexpr std::int64_t kPair = Dot::kPair;
  for (std::int64_t r = 0; r < padded; r += kPair) {
    Element* pairs = out + r * d_padded;
    const T* row = x + r * stride;
    const std::int64_t filled = r + kPair <= rows ? d : 0;
    for (std::int64_t i = 0; i < filled; ++i) {
      for (std::int64_t j = 0; j < kPair; ++j) pairs[i * kPair + j] = Dot::element(row[j * stride + i]);
    }
    for (std::int64_t i = filled; i < d_padded; ++i) {
      for (std::int64_t j = 0; j < kPair; ++j) {
        pairs[i * kPair + j] = r + j < rows && i < d ? Dot::element(row[j * stride + i]) : Element{};
      }
    }
  }
}

// Rows of x as left operands xᵀ, one per block of kBlock rows: [block][d_padded][kBlock].
template <class Dot, class T>
void transpose_rows(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
                    std::int64_t d_padded, typename Dot::Element* out) {
  for (std::int64_t block = 0; block < padded; block += kBlock, out += kBlock * d_padded) {
    for (std::int64_t i = 0; i < d_padded; ++i) {
      for (std::int64_t r = 0; r < kBlock; ++r) {
        const bool filled = block + r < rows && i < d;
        out[i * kBlock + r] = filled ? Dot::element(x[(block + r) * stride + i]) : typename Dot::Element{};
      }
    }
  }
}

// Rows of x as the rows of right operands, one per block of kBlock rows: [block][k = kBlock, d_columns].
template <class Dot, class T>
void pack_rows(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t padded, std::int64_t d,
               std::int64_t d_columns, typename Dot::Element* out) {
  for (std::int64_t block = 0; block < padded; block += kBlock) {
    for (std::int64_t column = 0; column < d_columns; column += kPanel) {
      const std::int64_t count = rows - block < kBlock ? rows - block : kBlock;
      const std::int64_t width = d - column < kPanel ? d - column : kPanel;
      pair_rows<Dot>(x + block * stride + column, stride, count, kBlock, width, kPanel,
                     out + block * d_columns + column * kBlock);
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

// The keys that queries [begin, begin + count) of a sequence see, and what all of them see together.
class KeyRanges {
 public:
  KeyRanges(const AttentionArguments& a, std::int64_t sequence, std::int64_t begin, std::int64_t count)
      : first_(a.first_key == nullptr ? nullptr : a.first_key + sequence * a.queries + begin),
        last_(a.last_key == nullptr ? nullptr : a.last_key + sequence * a.queries + begin),
        place_(a.keys - a.queries + begin),
        lowest_first(first(0)),
        highest_first(first(0)),
        lowest_last(last(0)),
        highest_last(last(count - 1)) {
    for (std::int64_t r = 1; first_ != nullptr && r < count; ++r) {
      lowest_first = smaller(lowest_first, first(r));
      highest_first = larger(highest_first, first(r));
    }
    for (std::int64_t r = 0; last_ != nullptr && r < count; ++r) {
      lowest_last = smaller(lowest_last, last(r));
      highest_last = larger(highest_last, last(r));
    }
  }
  std::int64_t first(std::int64_t r) const { return first_ == nullptr ? 0 : first_[r]; }
  std::int64_t last(std::int64_t r) const { return last_ == nullptr ? place_ + r : last_[r]; }

 private:
  const std::int32_t *first_, *last_;
  std::int64_t place_;

 public:
  std::int64_t lowest_first, highest_first, lowest_last, highest_last;
};

// Sizes as padded for the tiles.
struct Padded {
  std::int64_t queries, keys, d, d_columns;
  template <class Dot>
  static Padded of(const AttentionArguments& a) {
    return {round_up(a.queries, kBlock), round_up(a.keys, kBlock), round_up(a.head_size, Dot::kDepthStep),
            round_up(a.head_size, kPanel)};
  }
};

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
