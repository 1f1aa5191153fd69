// Cross-entropy of rows of logits, over the whole vocabulary or over the columns of one rank:
//   loss = log Σ exp(logit) - logit of the target;   dlogits = scale (softmax - onehot).
// Limit: memory. A block takes a row: one walk for the largest logit and the sum of exponentials (each thread rescales
// its sum when its maximum rises), and one for dlogits. Bytes: logits once and dlogits once where the rows under way
// (132 KB to 1 MB each multiprocessor) stay in the L2 cache, as the blocks of 4 M logits of the head do.
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

struct Statistics {
  float largest, sum;  // Σ exp(x - largest)
};

template <int N>
__device__ Statistics row_statistics(const float* row, std::int64_t width) {
  SHARED_ARRAY(float, parts, kWarp);
  float largest = -INFINITY, sum = 0;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < width; i += blockDim.x * N) {
    const auto values = load<N>(row + i);
    float top = largest;
#pragma unroll
    for (int k = 0; k < N; ++k) top = fmaxf(top, values[k]);
    if (top > largest) {
      sum *= expf(largest - top);
      largest = top;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sum += expf(values[k] - largest);
  }
  float top = warp_max(largest);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = top;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) top = fmaxf(top, parts[warp]);
  return {top, block_sum(largest == -INFINITY ? 0 * sum : sum * expf(largest - top))};
}

// dlogits = scale (exp(logits - top) / sum - onehot), zeros for an ignored row (target < 0). `column` is the target's.
template <int N, class T>
__device__ void write_gradient(const float* row, Statistics s, std::int64_t column, bool ignored, float scale,
                               T* dlogits, std::int64_t width) {
  const float inverse = 1.0F / s.sum;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < width; i += blockDim.x * N) {
    auto values = load<N>(row + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      values[k] = ignored ? 0.0F : scale * (expf(values[k] - s.largest) * inverse - (i + k == column ? 1.0F : 0.0F));
    }
    store(dlogits + i, values);
  }
}

// dlogits may be null.
template <int N, class T>
__global__ void cross_entropy(const float* logits, const std::int32_t* targets, float scale, float* losses, T* dlogits,
                              std::int64_t width) {
  const std::int64_t begin = blockIdx.x * width, target = targets[blockIdx.x];
  const Statistics s = row_statistics<N>(logits + begin, width);
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = target < 0 ? 0 : s.largest + logf(s.sum) - logits[begin + target];
  }
  if (dlogits != nullptr) {
    write_gradient<N>(logits + begin, s, target, target < 0, scale, dlogits + begin, width);
  }
}

template <int N>
__global__ void cross_entropy_part(const float* logits, const std::int32_t* targets, std::int64_t first, float* part,
                                   std::int64_t width) {
  const std::int64_t begin = blockIdx.x * width, target = targets[blockIdx.x], column = target - first;
  const Statistics s = row_statistics<N>(logits + begin, width);
  if (threadIdx.x != 0) return;
  float* to = part + static_cast<std::int64_t>(blockIdx.x) * 3;
  to[0] = s.largest;
  to[1] = s.sum;
  to[2] = target >= 0 && column >= 0 && column < width ? logits[begin + column] : 0;
}

template <int N, class T>
__global__ void cross_entropy_of_parts(const float* parts, std::int64_t ranks, const float* logits,
                                       const std::int32_t* targets, std::int64_t first, float scale, float* losses,
                                       T* dlogits, std::int64_t rows, std::int64_t width) {
  const std::int64_t begin = blockIdx.x * width, target = targets[blockIdx.x];
  const auto part = [&](std::int64_t rank) { return parts + (rank * rows + blockIdx.x) * 3; };
  Statistics s{part(0)[0], 0};
  for (std::int64_t r = 1; r < ranks; ++r) s.largest = fmaxf(s.largest, part(r)[0]);
  float logit = 0;
  for (std::int64_t r = 0; r < ranks; ++r) {
    s.sum += part(r)[1] * expf(part(r)[0] - s.largest);
    logit += part(r)[2];
  }
  if (threadIdx.x == 0) losses[blockIdx.x] = target < 0 ? 0 : s.largest + logf(s.sum) - logit;
  if (dlogits != nullptr) {
    write_gradient<N>(logits + begin, s, target - first, target < 0, scale, dlogits + begin, width);
  }
}

}  // namespace kernels

namespace {

constexpr unsigned kMostThreads = 512;

// visit.operator()<T>() with the type of dlogits; any, where it is empty.
template <class Visit>
void with_gradient_type(const Tensor& dlogits, Visit visit) {
  if (!dlogits) return visit.template operator()<float>();
  with_type(dlogits, visit);
}

}  // namespace

void cross_entropy(cudaStream_t stream, const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                   const Tensor& dlogits) {
  const std::int64_t width = width_of(logits);
  with_gradient_type(dlogits, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::cross_entropy<N, T>, blocks(rows_of(logits)), threads_for(divide_up(width, N), kMostThreads), 0,
             stream, elements<float>(logits), elements<std::int32_t>(targets), static_cast<float>(scale),
             elements<float>(losses), elements<T>(dlogits), width);
    };
    with_pack(width, start, elements<float>(logits), elements<T>(dlogits));
  });
}

void cross_entropy_part(cudaStream_t stream, const Tensor& logits, const Tensor& targets, std::int64_t first,
                        const Tensor& part) {
  const std::int64_t width = width_of(logits);
  const auto start = [&]<int N>() {
    launch(kernels::cross_entropy_part<N>, blocks(rows_of(logits)), threads_for(divide_up(width, N), kMostThreads), 0,
           stream, elements<float>(logits), elements<std::int32_t>(targets), first, elements<float>(part), width);
  };
  with_pack(width, start, elements<float>(logits));
}

void cross_entropy_of_parts(cudaStream_t stream, const Tensor& parts, const Tensor& logits, const Tensor& targets,
                            std::int64_t first, double scale, const Tensor& losses, const Tensor& dlogits) {
  const std::int64_t width = width_of(logits);
  with_gradient_type(dlogits, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::cross_entropy_of_parts<N, T>, blocks(rows_of(logits)),
             threads_for(divide_up(width, N), kMostThreads), 0, stream, elements<float>(parts), parts.shape[0],
             elements<float>(logits), elements<std::int32_t>(targets), first, static_cast<float>(scale),
             elements<float>(losses), elements<T>(dlogits), rows_of(logits), width);
    };
    with_pack(width, start, elements<float>(logits), elements<T>(dlogits));
  });
}

}  // namespace dropcycle::cuda
