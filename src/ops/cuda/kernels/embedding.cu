// Embedding: y[t] = w[tokens[t]], and dw[tokens[t]] += dy[t] in the order of t. Limit: memory.
// Backward without atomic additions of floats, whose order would change from run to run: a warp for each t looks for
// the next t with the same token (and whether there is an earlier one), then the blocks of each token's first t walk
// along its chain. The search reads T² / 2 tokens from the L2 cache at most: 0.13 GB at T = 8192, where dy of H = 4096
// has as much. Bytes of device memory: the least possible and 12 T.
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

template <int N, class T>
__global__ void embedding(const std::int32_t* tokens, const T* w, float* y, std::int64_t width) {
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (column >= width) return;
  const std::int64_t token = tokens[blockIdx.x];
  store(y + blockIdx.x * width + column, token < 0 ? Pack<N>{} : load<N>(w + token * width + column));
}

// next[t]: the next place of token t's value, -1 if there is none; is_first[t]: whether no earlier t has it. A warp
// for each t.
__global__ void chain_tokens(const std::int32_t* tokens, std::int32_t* next, std::int32_t* is_first,
                             std::int32_t count) {
  const auto t = static_cast<std::int32_t>(blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp);
  const auto lane = static_cast<std::int32_t>(threadIdx.x % kWarp);
  if (t >= count) return;
  const std::int32_t token = tokens[t];
  std::int32_t following = -1;
  for (std::int32_t begin = t + 1; begin < count && following < 0; begin += kWarp) {
    const std::int32_t i = begin + lane;
    const unsigned found = __ballot_sync(kAllLanes, i < count && tokens[i] == token);
    if (found != 0) following = begin + __ffs(static_cast<int>(found)) - 1;
  }
  bool first = token >= 0;
  for (std::int32_t end = t; end > 0 && first; end -= kWarp) {
    const std::int32_t i = end - 1 - lane;
    first = __ballot_sync(kAllLanes, i >= 0 && tokens[i] == token) == 0;
  }
  if (lane == 0) {
    next[t] = following;
    is_first[t] = first ? 1 : 0;
  }
}

template <int N, class T>
__global__ void embedding_backward(const T* dy, const std::int32_t* tokens, const std::int32_t* next,
                                   const std::int32_t* is_first, float* dw, std::int64_t width) {
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (column >= width || is_first[blockIdx.x] == 0) return;
  float* to = dw + tokens[blockIdx.x] * width + column;
  auto sum = load<N>(to);
  for (auto t = static_cast<std::int32_t>(blockIdx.x); t >= 0;) {
    const std::int32_t following = next[t];
    const auto g = load<N>(dy + t * width + column);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += g[k];
    t = following;
  }
  store(to, sum);
}

}  // namespace kernels

void embedding(cudaStream_t stream, const Tensor& tokens, const Tensor& w, const Tensor& y) {
  const std::int64_t width = width_of(w);
  with_type(w, [&]<class T>() {
    const auto start = [&]<int N>() {
      const unsigned threads = threads_for(divide_up(width, N));
      launch(kernels::embedding<N, T>, blocks(tokens.elements(), divide_up(width, std::int64_t{N} * threads)), threads,
             0, stream, elements<std::int32_t>(tokens), elements<T>(w), elements<float>(y), width);
    };
    with_pack(width, start, elements<T>(w), elements<float>(y));
  });
}

void embedding_backward(cudaStream_t stream, void* scratch, const Tensor& dy, const Tensor& tokens, const Tensor& dw) {
  const std::int64_t width = width_of(dw), count = tokens.elements();
  require(count <= kScratchBytes / 8, "embedding_backward: {} tokens", count);
  auto* next = static_cast<std::int32_t*>(scratch);
  std::int32_t* is_first = next + count;
  launch(kernels::chain_tokens, blocks(divide_up(count, kThreads / kWarp)), kThreads, 0, stream,
         elements<std::int32_t>(tokens), next, is_first, static_cast<std::int32_t>(count));
  with_type(dy, [&]<class T>() {
    const auto start = [&]<int N>() {
      const unsigned threads = threads_for(divide_up(width, N));
      launch(kernels::embedding_backward<N, T>, blocks(count, divide_up(width, std::int64_t{N} * threads)), threads, 0,
             stream, elements<T>(dy), elements<std::int32_t>(tokens), next, is_first, elements<float>(dw), width);
    };
    with_pack(width, start, elements<T>(dy), elements<float>(dw));
  });
}

}  // namespace dropcycle::cuda
