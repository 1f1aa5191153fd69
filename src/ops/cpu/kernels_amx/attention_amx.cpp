// Attention of bf16 tensors on the matrix units (tiles.hpp). Its exponentials take longer than its products.
#include "tiles.hpp"
// after the tiles
#include "../kernels/attention_backward.hpp"
#include "../kernels/attention_forward.hpp"
#include "../kernels_bf16/bf16_numbers.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

struct TileDot : Bf16Numbers {
  static constexpr bool kTiles = true;
  static constexpr std::int64_t kRowStep = kTileRows, kDepthStep = kTileDepth;
  using Region = Tiles;
  // c[rows, columns] = or += a[rows, k] b[k, columns], b in panels of kPanel columns; rows as a multiple of 16.
  static void multiply(const Left<TileDot>& a, const Bf16* b, std::int64_t k, float* c, std::int64_t ldc,
                       std::int64_t rows, std::int64_t columns, bool accumulate) {
    constexpr std::int64_t kSide = 2 * kTileRows;
    for (std::int64_t column = 0; column < columns; column += kSide) {
      const Bf16* panel = b + column / kPanel * kPanel * k + column % kPanel * 2;
      for (std::int64_t r = 0; r < rows; r += kSide) {
        multiply_tiles(rows - r > kTileRows ? 2 : 1, 2,
                       {a.data + r * a.row_step, kTileDepth, kTileRows * a.row_step, a.row_step},
                       {panel, kTileDepth * kPanel, kTileDepth, 2 * kPanel}, k / kTileDepth, c + r * ldc + column, ldc,
                       accumulate);
      }
    }
  }
};

}  // namespace

void attention_bf16_scratch(const AttentionArguments& a, bool backwards, std::int64_t threads, std::int64_t& bytes) {
  bytes = backwards ? backward_scratch_bytes<TileDot>(a, threads) : forward_scratch_bytes<TileDot>(a, threads);
}

void attention_bf16(const AttentionArguments& a) { forward<TileDot, Bf16>(a); }

void attention_bf16_backward(const AttentionArguments& a) { backward<TileDot, Bf16>(a); }

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
