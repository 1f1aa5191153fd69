// RMSNorm with the residual addition before it, and its adjoint.
//   sum = x + delta;  inv_rms = 1 / sqrt(mean_h sum² + epsilon);  y = sum inv_rms w
//   dx = dresidual + dy w inv_rms - x inv_rms³ mean_h(dy w x);  dw += Σ_t dy x inv_rms
// Limit: memory. Forward: a block per row, which waits in shared memory between the sum of squares and the product.
// Bytes: the least possible. Backward: a block takes several rows one after another and keeps its part of dw in shared
// memory; its second look at a row finds dy and x in the L1 cache. Bytes: the least possible and, for the parts of dw,
// at most 1/16 more (a block has 8 rows or more).
#include <algorithm>

#include "../kernels.hpp"
#include "column_sums.cuh"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

// delta may be null: then sum isn't written.
template <int N, class T>
__global__ void add_rms_norm(const float* x, const float* delta, const float* w, float epsilon, float* sum, T* y,
                             float* inv_rms, std::int64_t width) {
  DYNAMIC_SHARED(float, row);  // each thread reads only what it wrote
  const std::int64_t begin = blockIdx.x * width, step = static_cast<std::int64_t>(blockDim.x) * N;
  float squares = 0;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < width; i += step) {
    auto values = load<N>(x + begin + i);
    if (delta != nullptr) {
      const auto more = load<N>(delta + begin + i);
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] += more[k];
      store(sum + begin + i, values);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) squares += values[k] * values[k];
    store(row + i, values);
  }
  const float inverse = 1.0F / sqrtf(block_sum(squares) / static_cast<float>(width) + epsilon);
  if (threadIdx.x == 0) inv_rms[blockIdx.x] = inverse;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < width; i += step) {
    auto values = load<N>(row + i);
    const auto weights = load<N>(w + i);
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] = values[k] * inverse * weights[k];
    store(y + begin + i, values);
  }
}

// dresidual may be null, or dx. Block b takes the rows [b * block_rows, (b + 1) * block_rows) and writes dw_parts[b].
template <int N>
__global__ void rms_norm_backward(const float* dy, const float* x, const float* w, const float* inv_rms,
                                  const float* dresidual, float* dx, float* dw_parts, std::int64_t rows,
                                  std::int64_t block_rows, std::int64_t width) {
  DYNAMIC_SHARED(float, dw);  // each thread its own columns
  const std::int64_t start = static_cast<std::int64_t>(threadIdx.x) * N,
                     step = static_cast<std::int64_t>(blockDim.x) * N;
  for (std::int64_t i = start; i < width; i += step) store(dw + i, Pack<N>{});
  const std::int64_t first = blockIdx.x * block_rows, last = first + block_rows < rows ? first + block_rows : rows;
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t begin = row * width;
    float dot = 0;
    for (std::int64_t i = start; i < width; i += step) {
      const auto g = load<N>(dy + begin + i), values = load<N>(x + begin + i), weights = load<N>(w + i);
#pragma unroll
      for (int k = 0; k < N; ++k) dot += g[k] * weights[k] * values[k];
    }
    const float inverse = inv_rms[row];
    const float pull = inverse * inverse * inverse * block_sum(dot) / static_cast<float>(width);
    for (std::int64_t i = start; i < width; i += step) {
      const auto g = load<N>(dy + begin + i), values = load<N>(x + begin + i), weights = load<N>(w + i);
      auto out = dresidual != nullptr ? load<N>(dresidual + begin + i) : Pack<N>{};
      auto sums = load<N>(dw + i);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        out[k] += g[k] * weights[k] * inverse - values[k] * pull;
        sums[k] += g[k] * values[k] * inverse;
      }
      store(dx + begin + i, out);
      store(dw + i, sums);
    }
  }
  for (std::int64_t i = start; i < width; i += step) store(dw_parts + blockIdx.x * width + i, load<N>(dw + i));
}

}  // namespace kernels

namespace {

// Shared memory for one row.
std::size_t row_bytes(std::int64_t width) {
  constexpr std::int64_t kMaxWidth = 227 * 1024 / 4 - kWarp;  // less what block_sum takes
  require(width <= kMaxWidth, "RMSNorm of {} columns: the cuda backend takes {} at most", width, kMaxWidth);
  return static_cast<std::size_t>(width) * sizeof(float);
}

}  // namespace

void add_rms_norm(cudaStream_t stream, const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon,
                  const Tensor& sum, const Tensor& y, const Tensor& inv_rms) {
  const std::int64_t width = w.elements();
  with_type(y, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::add_rms_norm<N, T>, blocks(rows_of(x)), threads_for(divide_up(width, N)), row_bytes(width),
             stream, elements<float>(x), elements<float>(delta), elements<float>(w), static_cast<float>(epsilon),
             elements<float>(sum), elements<T>(y), elements<float>(inv_rms), width);
    };
    with_pack(width, start, elements<float>(x), elements<float>(delta), elements<float>(w), elements<float>(sum),
              elements<T>(y));
  });
}

void rms_norm_backward(cudaStream_t stream, void* scratch, const Tensor& dy, const Tensor& x, const Tensor& w,
                       const Tensor& inv_rms, const Tensor& dresidual, const Tensor& dx, const Tensor& dw) {
  constexpr std::int64_t kMaxBlocks = 528;  // four for each multiprocessor of an H100
  const std::int64_t width = w.elements(), rows = rows_of(x);
  const std::int64_t most = std::min(kMaxBlocks, kScratchBytes / 4 / std::max<std::int64_t>(width, 1));
  const std::int64_t block_rows = std::max<std::int64_t>(8, divide_up(rows, most)), count = divide_up(rows, block_rows);
  auto* parts = static_cast<float*>(scratch);
  const auto start = [&]<int N>() {
    launch(kernels::rms_norm_backward<N>, blocks(count), threads_for(divide_up(width, N), 512), row_bytes(width),
           stream, elements<float>(dy), elements<float>(x), elements<float>(w), elements<float>(inv_rms),
           elements<float>(dresidual), elements<float>(dx), parts, rows, block_rows, width);
  };
  with_pack(width, start, elements<float>(dy), elements<float>(x), elements<float>(w), elements<float>(dresidual),
            elements<float>(dx));
  sum_columns(stream, nullptr, parts, count, width, elements<float>(dw), true);
}

}  // namespace dropcycle::cuda
