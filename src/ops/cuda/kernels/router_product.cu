// The router's products, in float: logits[T,E] = x wᵀ, dx += dlogits w, dw += dlogitsᵀ x. E is small, so that they are
// bound by reading x (E = 8) up to the plain float units (E = 256), and tensor cores would round w to bf16.
// A block of 16 x 16 threads multiplies a tile of kDeep columns at a time from shared memory; where the tiles are too
// few to fill the GPU the depth is cut into parts, whose sums are added in order. Bytes: x once for E up to 64, and the
// parts of the sums.
#include <algorithm>

#include "../kernels.hpp"
#include "column_sums.cuh"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

constexpr int kSide = 16, kDeep = 16;

// Element (i, k) lies at data[i * row + k * column].
template <class T>
struct Operand {
  const T* data;
  std::int64_t row, column;
};

// tile[k][i] = operand(first + i, depth + k), 0 outside. Neighbouring threads read neighbouring elements.
template <int kRows, class T>
__device__ void load_tile(const Operand<T>& operand, std::int64_t first, std::int64_t rows, std::int64_t depth,
                          std::int64_t end, float* tile) {
#pragma unroll
  for (int n = 0; n < kRows * kDeep / kThreads; ++n) {
    const int element = static_cast<int>(threadIdx.x) + n * kThreads;
    const bool along_depth = operand.column == 1;
    const int i = along_depth ? element / kDeep : element % kRows, k = along_depth ? element % kDeep : element / kRows;
    const bool inside = first + i < rows && depth + k < end;
    tile[k * (kRows + 1) + i] =
        inside ? to_float(operand.data[(first + i) * operand.row + (depth + k) * operand.column]) : 0;
  }
}

// Part blockIdx.z: c[i,j] (+)= Σ_k a(i,k) b(j,k) over k in [z * part_depth, (z + 1) * part_depth), at c + z * rows *
// columns.
template <int kRows, int kColumns, class A, class B>
__global__ void __launch_bounds__(kThreads)
    tile_product(Operand<A> a, Operand<B> b, float* c, std::int64_t rows, std::int64_t columns, std::int64_t depth,
                 std::int64_t part_depth, bool accumulate) {
  constexpr int kOwnRows = kRows / kSide, kOwnColumns = kColumns / kSide;
  SHARED_ARRAY(float, left, kDeep*(kRows + 1));
  SHARED_ARRAY(float, right, kDeep*(kColumns + 1));
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kColumns;
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  const std::int64_t begin = blockIdx.z * part_depth, end = begin + part_depth < depth ? begin + part_depth : depth;
  float sums[kOwnRows][kOwnColumns] = {};
  for (std::int64_t k = begin; k < end; k += kDeep) {
    load_tile<kRows>(a, row, rows, k, end, left);
    load_tile<kColumns>(b, column, columns, k, end, right);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDeep; ++d) {
      float own_right[kOwnColumns];
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) own_right[j] = right[d * (kColumns + 1) + x + kSide * j];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) {
        const float own_left = left[d * (kRows + 1) + y + kSide * i];
#pragma unroll
        for (int j = 0; j < kOwnColumns; ++j) sums[i][j] += own_left * own_right[j];
      }
    }
    __syncthreads();
  }
  float* to = c + blockIdx.z * rows * columns;
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
#pragma unroll
    for (int j = 0; j < kOwnColumns; ++j) {
      const std::int64_t r = row + y + kSide * i, s = column + x + kSide * j;
      if (r < rows && s < columns) to[r * columns + s] = (accumulate ? to[r * columns + s] : 0) + sums[i][j];
    }
  }
}

}  // namespace kernels

namespace {

using kernels::Operand;

template <class A, class B>
void multiply(cudaStream_t stream, void* scratch, const Operand<A>& a, const Operand<B>& b, const Tensor& c,
              std::int64_t depth, bool accumulate) {
  constexpr std::int64_t kEnoughBlocks = 528, kLeastDepth = 256;
  const std::int64_t rows = rows_of(c), columns = width_of(c);
  const auto start = [&]<int kRows, int kColumns>() {
    const std::int64_t tiles = divide_up(rows, kRows) * divide_up(columns, kColumns);
    const std::int64_t most =
        std::min(divide_up(depth, kLeastDepth), kScratchBytes / std::max<std::int64_t>(c.bytes(), 1));
    const std::int64_t wanted =
        std::clamp<std::int64_t>(kEnoughBlocks / std::max<std::int64_t>(tiles, 1), 1, std::max<std::int64_t>(most, 1));
    const std::int64_t part_depth =
        divide_up(std::max<std::int64_t>(divide_up(depth, wanted), 1), kernels::kDeep) * kernels::kDeep;
    const std::int64_t parts = std::max<std::int64_t>(divide_up(depth, part_depth), 1);
    float* to = parts > 1 ? static_cast<float*>(scratch) : elements<float>(c);
    launch(kernels::tile_product<kRows, kColumns, A, B>,
           blocks(divide_up(rows, kRows), divide_up(columns, kColumns), parts), kThreads, 0, stream, a, b, to, rows,
           columns, depth, part_depth, accumulate && parts == 1);
    if (parts > 1) sum_columns(stream, nullptr, to, parts, c.elements(), elements<float>(c), accumulate);
  };
  if (columns <= 16) return start.template operator()<64, 16>();
  if (rows <= 16) return start.template operator()<16, 64>();
  start.template operator()<64, 64>();
}

}  // namespace

void router_logits(cudaStream_t stream, void* scratch, const Tensor& x, const Tensor& w, const Tensor& logits) {
  const std::int64_t width = width_of(x);
  with_type(x, [&]<class T>() {
    multiply(stream, scratch, Operand<T>{elements<T>(x), width, 1}, Operand<float>{elements<float>(w), width, 1},
             logits, width, false);
  });
}

void router_logits_backward(cudaStream_t stream, void* scratch, const Tensor& dlogits, const Tensor& x, const Tensor& w,
                            const Tensor& dx, const Tensor& dw) {
  const std::int64_t width = width_of(x), experts = width_of(dlogits);
  multiply(stream, scratch, Operand<float>{elements<float>(dlogits), experts, 1},
           Operand<float>{elements<float>(w), 1, width}, dx, experts, true);
  with_type(x, [&]<class T>() {
    multiply(stream, scratch, Operand<float>{elements<float>(dlogits), 1, experts},
             Operand<T>{elements<T>(x), 1, width}, dw, rows_of(x), true);
  });
}

}  // namespace dropcycle::cuda
