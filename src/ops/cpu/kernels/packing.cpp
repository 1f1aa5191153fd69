// Weights into the blocked layouts of matrix products. The layouts are oneDNN's, the loops are ours: its own reorders
// of transposed matrices take a tenth of a training step. Limit: memory bandwidth.
#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

// A group of elements with neighbouring k, four bytes.
using Unit = std::uint32_t;
constexpr std::int64_t kSide = BlockedLayout::kRows;
typedef Unit Units __attribute__((vector_size(4 * kSide), aligned(4), may_alias));

// Exchanges the off-diagonal blocks of `half` x `half` units in every block of twice the size.
template <int half>
void swap_blocks(Units (&v)[kSide]) {
  Units low, high;
  for (int j = 0; j < kSide; ++j) {
    low[j] = static_cast<Unit>((j & half) != 0 ? kSide + j - half : j);
    high[j] = static_cast<Unit>((j & half) != 0 ? kSide + j : j + half);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) {
    if ((i & half) != 0) continue;
    const Units a = v[i], b = v[i + half];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + half] = __builtin_shuffle(a, b, high);
  }
}

void transpose_units(const Unit* from, std::int64_t from_stride, Unit* to, std::int64_t to_stride) {
  Units v[kSide];
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) v[i] = *reinterpret_cast<const Units*>(from + i * from_stride);
  swap_blocks<8>(v);
  swap_blocks<4>(v);
  swap_blocks<2>(v);
  swap_blocks<1>(v);
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) *reinterpret_cast<Units*>(to + i * to_stride) = v[i];
}

// [k, n] that is stored with k contiguous.
void transposed_block(const BlockedLayout& layout, const Unit* w, std::int64_t width, Unit* to) {
  for (std::int64_t column = 0; column < layout.columns; column += kSide) {
    transpose_units(w + column * width, width, to + column, layout.columns);
  }
}

void block_of_floats(const BlockedLayout& layout, const Unit* w, std::int64_t n, Unit* to) {
  for (std::int64_t row = 0; row < kSide; ++row) {
    for (std::int64_t column = 0; column < layout.columns; ++column)
      to[row * layout.columns + column] = w[row * n + column];
  }
}

void block_of_pairs(const BlockedLayout& layout, const std::uint16_t* w, std::int64_t n, Unit* to) {
  for (std::int64_t row = 0; row < kSide; ++row) {
    const std::uint16_t *low = w + 2 * row * n, *high = low + n;
    for (std::int64_t column = 0; column < layout.columns; ++column) {
      to[row * layout.columns + column] = static_cast<Unit>(low[column]) | static_cast<Unit>(high[column]) << 16;
    }
  }
}

}  // namespace

void pack(const BlockedLayout& layout, bool transposed, std::int64_t k, std::int64_t n, const void* w, void* packed) {
  const std::int64_t group = layout.group, columns = layout.columns;
  const std::int64_t k_blocks = k / (kSide * group), n_blocks = n / columns;
#pragma omp parallel for schedule(static) if (k * n > kParallelElements)
  for (std::int64_t i = 0; i < n_blocks * k_blocks; ++i) {
    const std::int64_t n_block = i / k_blocks, k_block = i % k_blocks;
    Unit* to = static_cast<Unit*>(packed) + (k_block * layout.k_stride + n_block * layout.n_stride) / group;
    if (transposed) {
      const std::int64_t width = k / group;
      transposed_block(layout, static_cast<const Unit*>(w) + n_block * columns * width + k_block * kSide, width, to);
    } else if (group == 1) {
      block_of_floats(layout, static_cast<const Unit*>(w) + k_block * kSide * n + n_block * columns, n, to);
    } else {
      block_of_pairs(layout, static_cast<const std::uint16_t*>(w) + k_block * kSide * 2 * n + n_block * columns, n, to);
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
