// The matrix units (AMX): tiles of 16 rows of 64 bytes; a product adds 16 x 32 bf16 times 16 pairs x 16 columns to
// 16 x 16 floats in 16 cycles.
#pragma once

#include "../kernels_bf16/pairs.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

constexpr std::int64_t kTileRows = 16, kTileDepth = 32, kTileElements = kTileRows * kTileDepth;

// The compiler doesn't know what tile instructions read and write.
inline void tile_barrier() { asm volatile("" ::: "memory"); }

// A thread's tiles, all whole, as long as it lives.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; ++i) {
      shape.row_bytes[i] = 64;
      shape.rows[i] = kTileRows;
    }
    const void* const from = &shape;
    asm volatile("ldtilecfg (%0)" ::"r"(from) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Operands of multiply_tiles: elements from tile to tile along k and across, elements (of c: floats) from row to row.
struct TileOperand {
  const Bf16* data;
  std::int64_t step, across, row;
};

// c[16 kRows, 16 kColumns] = or += a b over `steps` tiles along k.
template <int kRows, int kColumns>
inline void multiply_tiles(const TileOperand& a, const TileOperand& b, std::int64_t steps, float* c, std::int64_t ldc,
                           bool accumulate) {
  static_assert(kRows <= 2 && kColumns <= 2);
  const std::int64_t bytes = ldc * 4, a_row = a.row * 2, b_row = b.row * 2;
  float* const lower = c + kTileRows * ldc;
  tile_barrier();
  if (accumulate) {
    _tile_loadd(0, c, bytes);
    if constexpr (kColumns == 2) _tile_loadd(1, c + kTileRows, bytes);
    if constexpr (kRows == 2) _tile_loadd(2, lower, bytes);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, lower + kTileRows, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const Bf16 *left = a.data, *right = b.data;
  for (std::int64_t i = 0; i < steps; ++i) {
    _tile_loadd(6, right, b_row);
    _tile_loadd(4, left, a_row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, right + b.across, b_row);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, left + a.across, a_row);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumns == 2) _tile_dpbf16ps(3, 5, 7);
    }
    left += a.step;
    right += b.step;
  }
  _tile_stored(0, c, bytes);
  if constexpr (kColumns == 2) _tile_stored(1, c + kTileRows, bytes);
  if constexpr (kRows == 2) _tile_stored(2, lower, bytes);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, lower + kTileRows, bytes);
  tile_barrier();
}

// Of `rows` and `columns` tiles, 1 or 2 each.
inline void multiply_tiles(std::int64_t rows, std::int64_t columns, const TileOperand& a, const TileOperand& b,
                           std::int64_t steps, float* c, std::int64_t ldc, bool accumulate) {
  if (rows == 2) {
    columns == 2 ? multiply_tiles<2, 2>(a, b, steps, c, ldc, accumulate)
                 : multiply_tiles<2, 1>(a, b, steps, c, ldc, accumulate);
  } else {
    columns == 2 ? multiply_tiles<1, 2>(a, b, steps, c, ldc, accumulate)
                 : multiply_tiles<1, 1>(a, b, steps, c, ldc, accumulate);
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
