// Products of bf16 matrices with vdpbf16ps, for processors without matrix units: pairs of bf16 multiplied and added to
// a float sum, 32 products an instruction. Both operands are read as they lie in memory: what a product needs of its
// right operand is packed into a panel for the cache just before, which costs less than a percent of the product.
// Limit: one vdpbf16ps a cycle; measured on Zen 4 (220 GFLOP/s a core): 0.90 to 0.99 of it forward and for dx,
// 0.8 to 0.97 for dw.
//
// A panel holds pairs of rows: [k / 2][width][2]. A tile is a few rows of the left operand, whose pairs are broadcast,
// times a panel. Every sum runs over k in order, whatever the tile, so bits don't depend on how work is cut.
#include <omp.h>

#include "pairs.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

using Pair = std::uint32_t;                         // of bf16
constexpr std::int64_t kWide = 4 * kLanes;          // columns of most panels; what is left over takes one vector
constexpr std::int64_t kTile = 6;                   // rows
constexpr std::int64_t kDepth = 2048;               // of a panel: 256 KiB, a quarter of a second-level cache
constexpr std::int64_t kGradientDepth = 1024;       // rows of dy and x at a time, at most: pieces are alike
constexpr std::int64_t kGradientWide = 2 * kLanes;  // columns of a panel of x
constexpr std::int64_t kGradientTile = 8;           // columns of a panel of dy
constexpr std::int64_t kGradientRows = 128;         // columns of dy that are packed at a time
// Panels that are written side by side don't begin a multiple of a page apart: their lines would push each other out of
// the first-level cache, a tenth of the time of dw.
constexpr std::int64_t kBetween = 16;  // pairs

inline Pair pair_at(const Bf16* from) {
  Pair pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return pair;
}

// What becomes of the sums of a tile.
enum class End : std::uint8_t { to_bf16, stream_bf16, to_float, stream_float, add_to_float };

// c[kRows, kVectors * kLanes]. Element (r, k) of a lies at a[r * row_step + k / 2 * pair_step + k % 2].
template <End kEnd, int kRows, int kVectors>
inline void tile(const Bf16* a, std::int64_t row_step, std::int64_t pair_step, const Pair* panel, std::int64_t pairs,
                 void* c, std::int64_t c_stride) {
  Vector sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = Vector{};
      if constexpr (kEnd == End::add_to_float)
        __builtin_prefetch(static_cast<float*>(c) + r * c_stride + v * kLanes, 0, 2);
    }
  }
  for (std::int64_t p = 0; p < pairs; ++p) {
    __m512bh right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = (__m512bh)_mm512_load_si512(panel + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto left = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair_at(a + r * row_step)));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = (Vector)_mm512_dpbf16_ps((__m512)sums[r][v], left, right[v]);
      }
    }
    panel += kVectors * kLanes;
    a += pair_step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t at = r * c_stride + v * kLanes;
      if constexpr (kEnd == End::to_bf16) {
        store_vector(static_cast<Bf16*>(c) + at, sums[r][v]);
      } else if constexpr (kEnd == End::stream_bf16) {
        if (v % 2 == 0) continue;
        const __m512bh both = _mm512_cvtne2ps_pbh((__m512)sums[r][v], (__m512)sums[r][v - 1]);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<Bf16*>(c) + at - kLanes), (__m512i)both);
      } else if constexpr (kEnd == End::stream_float) {
        _mm512_stream_ps(static_cast<float*>(c) + at, (__m512)sums[r][v]);
      } else {
        float* to = static_cast<float*>(c) + at;
        store_vector(to, kEnd == End::add_to_float ? load_vector(to) + sums[r][v] : sums[r][v]);
      }
    }
  }
}

// c[rows, kVectors * kLanes] from a panel; tile_step: elements of a from row to row of c.
template <End kEnd, int kRows, int kVectors>
void rows_by_panel(const Bf16* a, std::int64_t tile_step, std::int64_t row_step, std::int64_t pair_step,
                   const Pair* panel, std::int64_t pairs, std::int64_t rows, void* c, std::int64_t c_stride) {
  const auto to = [&](std::int64_t r) {
    return static_cast<char*>(c) + r * c_stride * (kEnd <= End::stream_bf16 ? 2 : 4);
  };
  const auto from = [&](std::int64_t r) { return a + r * tile_step; };
  std::int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    tile<kEnd, kRows, kVectors>(from(r), row_step, pair_step, panel, pairs, to(r), c_stride);
  }
  for (; r + 2 <= rows; r += 2) {
    tile<kEnd, 2, kVectors>(from(r), row_step, pair_step, panel, pairs, to(r), c_stride);
  }
  if (r < rows) tile<kEnd, 1, kVectors>(from(r), row_step, pair_step, panel, pairs, to(r), c_stride);
}

// Where the panel of column `column` begins.
template <std::int64_t kWidth>
std::int64_t panel_start(std::int64_t column, std::int64_t pairs) {
  return column / kWidth * (kWidth * pairs + kBetween);
}

// Panels of kWidth columns of w [k, n], columns contiguous; the last may be narrower.
template <std::int64_t kWidth>
void panels_of_rows(const Bf16* w, std::int64_t stride, std::int64_t k, std::int64_t columns, Pair* panels) {
  const std::int64_t pairs = ceil_div(k, 2);
  weave_rows(w, stride, k, columns, [&](std::int64_t pair, std::int64_t column, const Woven& both) {
    const std::int64_t start = column / kWidth * kWidth;
    const std::int64_t width = columns - start < kWidth ? columns - start : kWidth;
    Pair* to = panels + panel_start<kWidth>(start, pairs) + pair * width + column - start;
    _mm512_store_si512(to, both.low);
    if (column + kLanes < columns) _mm512_store_si512(to + kLanes, both.high);
  });
}

// Panels of kGradientTile columns of dy.
void panels_of_dy(const Bf16* dy, std::int64_t stride, std::int64_t k, std::int64_t columns, Pair* panels) {
  const std::int64_t pairs = ceil_div(k, 2);
  weave_rows(dy, stride, k, columns, [&](std::int64_t pair, std::int64_t column, const Woven& both) {
    const auto store = [&](std::int64_t i, __m256i pairs_of_tile) {
      const std::int64_t first = column + i * kGradientTile;
      if (first >= columns) return;
      Pair* to = panels + panel_start<kGradientTile>(first, pairs) + pair * kGradientTile;
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), pairs_of_tile);
    };
    store(0, _mm512_castsi512_si256(both.low));
    store(1, _mm512_extracti64x4_epi64(both.low, 1));
    store(2, _mm512_castsi512_si256(both.high));
    store(3, _mm512_extracti64x4_epi64(both.high, 1));
  });
}

// A panel of w [n, k], k contiguous: squares of 16 rows and 16 pairs are transposed. The next panel is fetched
// meanwhile.
void panel_of_columns(const Bf16* w, std::int64_t stride, std::int64_t k, std::int64_t columns, Pair* panel) {
  for (std::int64_t column = 0; column < columns; column += kLanes) {
    const Bf16* rows = w + column * stride;
    for (std::int64_t first = 0; first < k; first += 2 * kLanes) {
      IntVector square[kLanes];
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kLanes; ++i) {
        square[i] = (IntVector)load_pairs(rows + i * stride + first, k - first);
        __builtin_prefetch(rows + (i + columns) * stride + first, 0, 2);
      }
      transpose(square);
      const std::int64_t pairs = (k - first) / 2 < kLanes ? (k - first) / 2 : kLanes;
      Pair* to = panel + first / 2 * columns + column;
      for (std::int64_t i = 0; i < pairs; ++i) _mm512_store_si512(to + i * columns, (__m512i)square[i]);
    }
  }
}

void partial_to_bf16(const float* partial, std::int64_t rows, std::int64_t columns, Bf16* c, std::int64_t c_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < columns; i += kLanes) {
      store_vector(c + r * c_stride + i, load_vector(partial + r * kWide + i));
    }
  }
}

// Blocks of k meet in c, or in `partial` [rows, kWide] where c is bf16.
template <int kVectors>
void multiply_panel(const Bf16Sizes& sizes, const Bf16Task& task, std::int64_t column, Pair* panel, float* partial) {
  constexpr std::int64_t kColumns = kVectors * kLanes;
  const auto* b = static_cast<const Bf16*>(task.b);
  const bool narrow = sizes.c_type == Type::bf16, whole = task.k <= kDepth;
  void* const c = static_cast<char*>(task.c) + column * (narrow ? 2 : 4);
  void* const to = narrow && !whole ? partial : c;
  const std::int64_t stride = narrow && !whole ? kWide : sizes.c_stride, step = sizes.a_stride;
  for (std::int64_t first = 0; first < task.k; first += kDepth) {
    const std::int64_t depth = task.k - first < kDepth ? task.k - first : kDepth, pairs = depth / 2;
    const auto* a = static_cast<const Bf16*>(task.a) + first;
    if (sizes.transposed) {
      panel_of_columns(b + column * sizes.b_stride + first, sizes.b_stride, depth, kColumns, panel);
    } else {
      panels_of_rows<kColumns>(b + first * sizes.b_stride + column, sizes.b_stride, depth, kColumns, panel);
    }
    if (sizes.stream && whole && kVectors == 4) {
      if (narrow) {
        rows_by_panel<End::stream_bf16, kTile, kVectors>(a, step, step, 2, panel, pairs, task.rows, to, stride);
      } else {
        rows_by_panel<End::stream_float, kTile, kVectors>(a, step, step, 2, panel, pairs, task.rows, to, stride);
      }
    } else if (narrow && whole) {
      rows_by_panel<End::to_bf16, kTile, kVectors>(a, step, step, 2, panel, pairs, task.rows, to, stride);
    } else if (first == 0) {
      rows_by_panel<End::to_float, kTile, kVectors>(a, step, step, 2, panel, pairs, task.rows, to, stride);
    } else {
      rows_by_panel<End::add_to_float, kTile, kVectors>(a, step, step, 2, panel, pairs, task.rows, to, stride);
    }
  }
  if (narrow && !whole) partial_to_bf16(partial, task.rows, kColumns, static_cast<Bf16*>(c), sizes.c_stride);
}

void multiply_task(const Bf16Sizes& sizes, const Bf16Task& task, Pair* panel, float* partial) {
  if (sizes.transposed && task.rows <= kDotRows) return multiply_by_dots(sizes, task);
  std::int64_t column = 0;
  for (; column + kWide <= task.columns; column += kWide) multiply_panel<4>(sizes, task, column, panel, partial);
  for (; column < task.columns; column += kLanes) multiply_panel<1>(sizes, task, column, panel, partial);
}

// Some rows of dw and their panel of dy.
struct GradientRows {
  const Pair* panel;
  std::int64_t pairs, rows;
  float* dw;
  std::int64_t stride;
};

// Columns [column, column + kVectors * kLanes) of them.
template <int kVectors>
void gradient_tile(const GradientRows& to, const Pair* panels_of_x, std::int64_t column) {
  rows_by_panel<End::add_to_float, kGradientTile, kVectors>(
      reinterpret_cast<const Bf16*>(to.panel), 2, 2, 2 * kGradientTile,
      panels_of_x + panel_start<kGradientWide>(column, to.pairs), to.pairs, to.rows, to.dw + column, to.stride);
}

// kGradientRows columns of rows [row, end) come into the second-level cache.
void fetch_rows(const Bf16* x, std::int64_t stride, std::int64_t row, std::int64_t end) {
  for (; row < end; ++row) {
    for (std::int64_t column = 0; column < kGradientRows; column += 32) {
      __builtin_prefetch(x + row * stride + column, 0, 2);
    }
  }
}

// The panels of x stay in the second-level cache while those of dy pass, each of them in the first while dw is passed
// over in order. Rows of dy that are packed next come into the second-level cache meanwhile, a few with each tile.
void gradient_task(const Bf16Sizes& sizes, const Bf16Task& task, Pair* left, Pair* right) {
  const std::int64_t pieces = ceil_div(task.k, kGradientDepth), most = ceil_div(task.k, 2 * pieces) * 2;
  const std::int64_t across = ceil_div(task.columns, kGradientWide), stride = sizes.a_stride;
  for (std::int64_t first = 0; first < task.k; first += most) {
    const std::int64_t depth = smaller(most, task.k - first), next_depth = smaller(most, task.k - first - depth);
    const std::int64_t pairs = ceil_div(depth, 2);
    const auto* dy = static_cast<const Bf16*>(task.a) + first * stride;
    panels_of_rows<kGradientWide>(static_cast<const Bf16*>(task.b) + first * sizes.b_stride, sizes.b_stride, depth,
                                  task.columns, right);
    for (std::int64_t block = 0; block < task.rows; block += kGradientRows) {
      const std::int64_t rows = smaller(kGradientRows, task.rows - block);
      panels_of_dy(dy + block, stride, depth, rows, left);
      const bool last = block + rows == task.rows;
      const Bf16* next = last ? dy + depth * stride : dy + block + rows;
      const std::int64_t next_rows = last ? next_depth : depth;
      const std::int64_t each = ceil_div(next_rows, ceil_div(rows, kGradientTile) * across);
      for (std::int64_t row = 0; row < rows; row += kGradientTile) {
        const std::int64_t tile = row / kGradientTile * across;
        const GradientRows to{left + panel_start<kGradientTile>(row, pairs), pairs, smaller(kGradientTile, rows - row),
                              static_cast<float*>(task.c) + (block + row) * sizes.c_stride, sizes.c_stride};
        for (std::int64_t i = 0; i < across; ++i) {
          fetch_rows(next, stride, (tile + i) * each, smaller((tile + i + 1) * each, next_rows));
          const std::int64_t column = i * kGradientWide;
          if (column + kGradientWide <= task.columns) {
            gradient_tile<2>(to, right, column);
          } else {
            gradient_tile<1>(to, right, column);
          }
        }
      }
    }
  }
}

// A task's panels: of weights, or of x; then the partial sums, or the panels of dy.
constexpr std::int64_t panel_bytes(std::int64_t columns, std::int64_t width) {
  return columns / width * (width * kGradientDepth / 2 + kBetween) * 4;
}
constexpr std::int64_t kWeightBytes = kDepth * kWide * 2, kPartialBytes = kBf16TaskRows * kWide * 4;
constexpr std::int64_t kInputBytes = panel_bytes(kBf16TaskInputs, kGradientWide);
constexpr std::int64_t kOutputBytes = panel_bytes(kGradientRows, kGradientTile);
constexpr std::int64_t kPanelBytes = kWeightBytes > kInputBytes ? kWeightBytes : kInputBytes;
constexpr std::int64_t kSecondBytes = kOutputBytes > kPartialBytes ? kOutputBytes : kPartialBytes;

}  // namespace

std::int64_t products_bf16_scratch() { return kPanelBytes + kSecondBytes; }

void products_bf16(const Bf16Sizes& sizes, const Bf16Task* tasks, std::int64_t count, void* scratch) {
#pragma omp parallel if (count > 1)
  {
    char* own = static_cast<char*>(scratch) + omp_get_thread_num() * products_bf16_scratch();
    auto* panel = reinterpret_cast<Pair*>(own);
    void* second = own + kPanelBytes;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < count; ++i) {
      if (sizes.gradient) {
        gradient_task(sizes, tasks[i], static_cast<Pair*>(second), panel);
      } else {
        multiply_task(sizes, tasks[i], panel, static_cast<float*>(second));
      }
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
