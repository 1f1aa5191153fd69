// Products of bf16 matrices on the matrix units. Both operands are read as they lie in memory and packed into tiles for
// the caches just before: the smaller one, which stays in the second-level cache, whole; the other 32 rows or columns
// at a time. Limit: a product of tiles in 16 cycles.
//
// A block of 32 x 32 of c is summed in four tiles, goes through 4 KiB of the first-level cache and from there to where
// it belongs. Every sum runs over k in order, in pieces that depend on k alone, so bits don't depend on how work is
// cut.
#include <omp.h>

#include "tiles.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

constexpr std::int64_t kSide = 2 * kTileRows;               // rows and columns of a block
constexpr std::int64_t kMostDepth = 2048;                   // of weights packed at a time
constexpr std::int64_t kGradientPiece = 1024;               // rows of dy and x at a time, at most: pieces are alike
constexpr std::int64_t kResident = 512 * 1024;              // packed elements that stay: 1 MiB
constexpr std::int64_t kPassing = kSide * kMostDepth;       // packed elements that pass
constexpr std::int64_t kWidest = kResident / kMostDepth;    // columns where k is cut
constexpr std::int64_t kPartials = kAmxTaskRows * kWidest;  // sums so far where k is cut and c is bf16

// What becomes of a block: written as bf16 or float, added to floats; or written past the caches.
enum class Sink : std::uint8_t { bf16, bf16_streamed, floats, floats_streamed, added };

struct ThreadMemory {
  Bf16 *resident, *passing;
  float *block, *partial;
  explicit ThreadMemory(char* at)
      : resident(reinterpret_cast<Bf16*>(at)),
        passing(resident + kResident),
        block(reinterpret_cast<float*>(passing + kPassing)),
        partial(block + kSide * kSide) {}
  static constexpr std::int64_t kBytes = 2 * (kResident + kPassing) + 4 * (kSide * kSide + kPartials);
};

void drain(const float* block, Sink sink, std::int64_t rows, std::int64_t columns, void* c, std::int64_t c_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* from = block + r * kSide;
    auto* narrow = static_cast<Bf16*>(c) + r * c_stride;
    auto* wide = static_cast<float*>(c) + r * c_stride;
    if (sink == Sink::bf16_streamed && columns == kSide) {
      const __m512bh both = _mm512_cvtne2ps_pbh((__m512)load_vector(from + kLanes), (__m512)load_vector(from));
      _mm512_stream_si512(reinterpret_cast<__m512i*>(narrow), (__m512i)both);
      continue;
    }
    for (std::int64_t i = 0; i < columns; i += kLanes) {
      const Vector value = load_vector(from + i);
      if (sink == Sink::bf16 || sink == Sink::bf16_streamed) {
        store_vector(narrow + i, value);
      } else if (sink == Sink::floats_streamed) {
        _mm512_stream_ps(wide + i, (__m512)value);
      } else {
        store_vector(wide + i, sink == Sink::added ? load_vector(wide + i) + value : value);
      }
    }
  }
}

std::int64_t tiles_of(std::int64_t count) { return count > kTileRows ? 2 : 1; }
std::int64_t padded_depth(std::int64_t k) { return ceil_div(k, kTileDepth) * kTileDepth; }

// Left tiles [k / 32][2][16][32] of up to 32 rows; missing rows are zeros.
void pack_rows_left(const Bf16* a, std::int64_t stride, std::int64_t rows, std::int64_t k, Bf16* to) {
  const std::int64_t packed = tiles_of(rows) * kTileRows;
  for (std::int64_t r = 0; r < packed; ++r) {
    Bf16* row = to + r / kTileRows * kTileElements + r % kTileRows * kTileDepth;
    for (std::int64_t at = 0; at < k; at += kTileDepth, row += 2 * kTileElements) {
      _mm512_store_si512(row, r < rows ? load_pairs(a + r * stride + at, k - at) : _mm512_setzero_si512());
    }
  }
}

// The same of up to 32 columns of dy [k, columns]: squares of 16 columns and 16 pairs of rows are transposed.
void pack_columns_left(const Bf16* dy, std::int64_t stride, std::int64_t columns, std::int64_t k, Bf16* to) {
  for (std::int64_t column = 0; column < columns; column += kTileRows) {
    const std::int64_t width = smaller(kTileRows, columns - column);
    const auto mask = static_cast<__mmask16>((1U << width) - 1);
    const auto words = [&](std::int64_t row) {
      if (row >= k) return _mm512_setzero_si512();
      return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, dy + row * stride + column));
    };
    Bf16* tile = to + column / kTileRows * kTileElements;
    for (std::int64_t first = 0; first < k; first += kTileDepth, tile += 2 * kTileElements) {
      IntVector square[kLanes];
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kLanes; ++i) {
        const std::int64_t row = first + 2 * i;
        __builtin_prefetch(dy + (row + kRowsAhead) * stride + column, 0, 2);
        __builtin_prefetch(dy + (row + kRowsAhead + 1) * stride + column, 0, 2);
        square[i] = (IntVector)_mm512_or_si512(words(row), _mm512_slli_epi32(words(row + 1), 16));
      }
      transpose(square);
      for (std::int64_t i = 0; i < kLanes; ++i) _mm512_store_si512(tile + i * kTileDepth, (__m512i)square[i]);
    }
  }
}

// Right tiles [k / 32][tiles][16 pairs][16][2] of up to 32 columns of b [k, columns].
void pack_rows_right(const Bf16* b, std::int64_t stride, std::int64_t columns, std::int64_t k, Bf16* to) {
  const std::int64_t tiles = tiles_of(columns), step = tiles * kTileElements;
  if (k % kTileDepth != 0) __builtin_memset(to + k / kTileDepth * step, 0, static_cast<std::size_t>(2 * step));
  weave_rows(b, stride, k, columns, [&](std::int64_t pair, std::int64_t, const Woven& both) {
    Bf16* row = to + pair / kTileRows * step + pair % kTileRows * kTileDepth;
    _mm512_store_si512(row, both.low);
    if (tiles == 2) _mm512_store_si512(row + kTileElements, both.high);
  });
}

// The same of b stored [columns, k]: squares of 16 columns and 16 pairs are transposed; the next columns are fetched
// meanwhile.
void pack_columns_right(const Bf16* b, std::int64_t stride, std::int64_t columns, std::int64_t k, Bf16* to) {
  const std::int64_t step = tiles_of(columns) * kTileElements;
  for (std::int64_t column = 0; column < columns; column += kTileRows) {
    const Bf16* rows = b + column * stride;
    Bf16* tile = to + column / kTileRows * kTileElements;
    for (std::int64_t first = 0; first < k; first += kTileDepth, tile += step) {
      IntVector square[kLanes];
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kLanes; ++i) {
        square[i] = (IntVector)load_pairs(rows + i * stride + first, k - first);
        __builtin_prefetch(rows + (i + columns) * stride + first, 0, 2);
      }
      transpose(square);
      for (std::int64_t i = 0; i < kLanes; ++i) _mm512_store_si512(tile + i * kTileDepth, (__m512i)square[i]);
    }
  }
}

// A block of c from packed rows and columns, k padded.
void multiply_block(const Bf16* left, const Bf16* right, std::int64_t rows, std::int64_t columns, std::int64_t depth,
                    float* block) {
  const std::int64_t across = tiles_of(columns);
  multiply_tiles(tiles_of(rows), across, {left, 2 * kTileElements, kTileElements, kTileDepth},
                 {right, across * kTileElements, kTileElements, kTileDepth}, depth / kTileDepth, block, kSide, false);
}

// Some columns of a task; k is cut at kMostDepth, pieces meet in c, or in `partial` where c is bf16.
void multiply_columns(const Bf16Sizes& sizes, const Bf16Task& task, std::int64_t start, std::int64_t columns,
                      const ThreadMemory& memory) {
  const bool narrow = sizes.c_type == Type::bf16, whole = task.k <= kMostDepth;
  char* const c = static_cast<char*>(task.c) + start * (narrow ? 2 : 4);
  char* const to = narrow && !whole ? reinterpret_cast<char*>(memory.partial) : c;
  const std::int64_t stride = narrow && !whole ? kWidest : sizes.c_stride, c_size = narrow && whole ? 2 : 4;
  Sink sink = narrow && whole ? Sink::bf16 : Sink::floats;
  if (sizes.stream && whole) sink = narrow ? Sink::bf16_streamed : Sink::floats_streamed;
  for (std::int64_t first = 0; first < task.k; first += kMostDepth) {
    const std::int64_t k = smaller(kMostDepth, task.k - first), depth = padded_depth(k);
    for (std::int64_t column = 0; column < columns; column += kSide) {
      const std::int64_t width = smaller(kSide, columns - column), at = start + column;
      const auto* b = static_cast<const Bf16*>(task.b);
      Bf16* panel = memory.resident + column * depth;
      sizes.transposed ? pack_columns_right(b + at * sizes.b_stride + first, sizes.b_stride, width, k, panel)
                       : pack_rows_right(b + first * sizes.b_stride + at, sizes.b_stride, width, k, panel);
    }
    for (std::int64_t row = 0; row < task.rows; row += kSide) {
      const std::int64_t rows = smaller(kSide, task.rows - row);
      pack_rows_left(static_cast<const Bf16*>(task.a) + row * sizes.a_stride + first, sizes.a_stride, rows, k,
                     memory.passing);
      for (std::int64_t column = 0; column < columns; column += kSide) {
        const std::int64_t width = smaller(kSide, columns - column);
        multiply_block(memory.passing, memory.resident + column * depth, rows, width, depth, memory.block);
        drain(memory.block, first == 0 ? sink : Sink::added, rows, width, to + (row * stride + column) * c_size,
              stride);
      }
    }
  }
  for (std::int64_t row = 0; narrow && !whole && row < task.rows; ++row) {
    for (std::int64_t i = 0; i < columns; i += kLanes) {
      store_vector(reinterpret_cast<Bf16*>(c) + row * sizes.c_stride + i,
                   load_vector(memory.partial + row * stride + i));
    }
  }
}

void multiply_task(const Bf16Sizes& sizes, const Bf16Task& task, const ThreadMemory& memory) {
  if (sizes.transposed && task.rows <= kDotRows) return multiply_by_dots(sizes, task);
  const std::int64_t most = kResident / smaller(padded_depth(task.k), kMostDepth) / kSide * kSide;
  for (std::int64_t start = 0; start < task.columns; start += most) {
    multiply_columns(sizes, task, start, smaller(most, task.columns - start), memory);
  }
}

// dy stays packed while x passes.
void gradient_task(const Bf16Sizes& sizes, const Bf16Task& task, const ThreadMemory& memory) {
  const std::int64_t pieces = ceil_div(task.k, kGradientPiece), most = padded_depth(ceil_div(task.k, pieces));
  for (std::int64_t first = 0; first < task.k; first += most) {
    const std::int64_t k = smaller(most, task.k - first), depth = padded_depth(k);
    for (std::int64_t row = 0; row < task.rows; row += kSide) {
      pack_columns_left(static_cast<const Bf16*>(task.a) + first * sizes.a_stride + row, sizes.a_stride,
                        smaller(kSide, task.rows - row), k, memory.resident + row * depth);
    }
    for (std::int64_t column = 0; column < task.columns; column += kSide) {
      const std::int64_t columns = smaller(kSide, task.columns - column);
      pack_rows_right(static_cast<const Bf16*>(task.b) + first * sizes.b_stride + column, sizes.b_stride, columns, k,
                      memory.passing);
      for (std::int64_t row = 0; row < task.rows; row += kSide) {
        const std::int64_t rows = smaller(kSide, task.rows - row);
        float* c = static_cast<float*>(task.c) + row * sizes.c_stride + column;
        for (std::int64_t r = 0; r < rows; ++r) {
          __builtin_prefetch(c + r * sizes.c_stride, 1, 2);
          __builtin_prefetch(c + r * sizes.c_stride + kLanes, 1, 2);
        }
        multiply_block(memory.resident + row * depth, memory.passing, rows, columns, depth, memory.block);
        drain(memory.block, Sink::added, rows, columns, c, sizes.c_stride);
      }
    }
  }
}

}  // namespace

std::int64_t products_bf16_scratch() { return ThreadMemory::kBytes; }

void products_bf16(const Bf16Sizes& sizes, const Bf16Task* tasks, std::int64_t count, void* scratch) {
#pragma omp parallel if (count > 1)
  {
    const Tiles tiles;
    const ThreadMemory memory(static_cast<char*>(scratch) + omp_get_thread_num() * ThreadMemory::kBytes);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < count; ++i) {
      sizes.gradient ? gradient_task(sizes, tasks[i], memory) : multiply_task(sizes, tasks[i], memory);
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
