// sum_rows: out[e] += Σ_t x[t,e], and the sums of other kernels' partial results. Limit: memory. A block sums 32
// columns (a warp reads 128 bytes of a row); its warps take rows in turn, and their sums are added in the order of the
// warps. Bytes: x once, and where there are more than kDirectRows rows a 1/128 of it for partial sums.
#include "column_sums.cuh"

#include <algorithm>

#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

// Block (32, warps); grid (columns / 32, parts of `part_rows` rows). Part p writes to out + p * width.
__global__ void sum_columns(const float* x, std::int64_t rows, std::int64_t part_rows, std::int64_t width, float* out,
                            bool accumulate) {
  SHARED_ARRAY(float, sums, kWarp* kWarp);
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const std::int64_t first = blockIdx.y * part_rows, last = first + part_rows < rows ? first + part_rows : rows;
  float sum = 0;
  if (column < width) {
#pragma unroll 4
    for (std::int64_t row = first + threadIdx.y; row < last; row += blockDim.y) sum += x[row * width + column];
  }
  sums[threadIdx.y * kWarp + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  float* to = out + blockIdx.y * width + column;
  float total = accumulate ? *to : 0;
  for (unsigned warp = 0; warp < blockDim.y; ++warp) total += sums[warp * kWarp + threadIdx.x];
  *to = total;
}

}  // namespace kernels

void sum_columns(cudaStream_t stream, void* scratch, const float* x, std::int64_t rows, std::int64_t width, float* out,
                 bool accumulate) {
  const auto sum = [&](const float* from, std::int64_t count, std::int64_t part_rows, float* to, bool add) {
    const std::int64_t parts = std::max<std::int64_t>(divide_up(count, part_rows), 1);
    const auto warps = static_cast<unsigned>(std::clamp<std::int64_t>(part_rows / 4, 1, kWarp));
    launch(kernels::sum_columns, blocks(divide_up(width, kWarp), parts), dim3(kWarp, warps), 0, stream, from, count,
           part_rows, width, to, add);
    return parts;
  };
  if (rows <= kDirectRows) {
    sum(x, rows, std::max<std::int64_t>(rows, 1), out, accumulate);
    return;
  }
  const std::int64_t part_rows = std::max<std::int64_t>(256, divide_up(rows, kDirectRows));
  require(divide_up(rows, part_rows) * width * 4 <= kScratchBytes, "sums of {} columns of {} rows", width, rows);
  auto* partial = static_cast<float*>(scratch);
  const std::int64_t parts = sum(x, rows, part_rows, partial, false);
  sum(partial, parts, parts, out, accumulate);
}

void sum_rows(cudaStream_t stream, void* scratch, const Tensor& x, const Tensor& out) {
  sum_columns(stream, scratch, elements<float>(x), rows_of(x), out.elements(), elements<float>(out), true);
}

}  // namespace dropcycle::cuda
