// combine: y[t] = Σ_k weights[t,k] z[slots[t,k]], sums in float in the order of k; its adjoint dz[slots[t,k]] =
// weights[t,k] dy[t], dweights[t,k] = Σ_h dy[t,h] z[slots[t,k],h]. Limit: memory. Forward: a block takes (a piece of) a
// token, a thread a pack of y. Backward: a block takes a token; up to kTogether of its K rows are done in one walk
// along dy[t], whose further walks find it in the caches. Bytes: the least possible, each row of z once.
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

// weights may be null: ones.
template <int N, class T, class Y>
__global__ void combine(const T* z, const std::int32_t* slots, const float* weights, Y* y, int chosen,
                        std::int64_t width) {
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (column >= width) return;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * chosen;
  Pack<N> sum{};
#pragma unroll 2
  for (int k = 0; k < chosen; ++k) {
    const float weight = weights != nullptr ? weights[first + k] : 1.0F;
    const auto row = load<N>(z + slots[first + k] * width + column);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += weight * row[i];
  }
  store(y + blockIdx.x * width + column, sum);
}

constexpr int kTogether = 2;

template <int N, class T>
__global__ void combine_backward(const float* dy, const T* z, const std::int32_t* slots, const float* weights, T* dz,
                                 float* dweights, int chosen, std::int64_t width) {
  const std::int64_t token = blockIdx.x;
  for (int k = 0; k < chosen; k += kTogether) {
    const int rows = chosen - k < kTogether ? chosen - k : kTogether;
    std::int64_t begin[kTogether];
    float weight[kTogether], dot[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const std::int64_t i = token * chosen + k + (j < rows ? j : 0);
      begin[j] = slots[i] * width;
      weight[j] = weights[i];
      dot[j] = 0;
    }
    for (std::int64_t column = static_cast<std::int64_t>(threadIdx.x) * N; column < width; column += blockDim.x * N) {
      const auto g = load<N>(dy + token * width + column);
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (j >= rows) continue;
        const auto row = load<N>(z + begin[j] + column);
        Pack<N> out;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          out[i] = weight[j] * g[i];
          dot[j] += g[i] * row[i];
        }
        store(dz + begin[j] + column, out);
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (j >= rows) continue;
      const float sum = block_sum(dot[j]);
      if (threadIdx.x == 0) dweights[token * chosen + k + j] = sum;
    }
  }
}

}  // namespace kernels

void combine(cudaStream_t stream, const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) {
  const std::int64_t width = width_of(y), chosen = width_of(slots);
  with_type(z, [&]<class T>() {
    with_type(y, [&]<class Y>() {
      const auto start = [&]<int N>() {
        const unsigned threads = threads_for(divide_up(width, N));
        launch(kernels::combine<N, T, Y>, blocks(rows_of(slots), divide_up(width, std::int64_t{N} * threads)), threads,
               0, stream, elements<T>(z), elements<std::int32_t>(slots), elements<float>(weights), elements<Y>(y),
               static_cast<int>(chosen), width);
      };
      with_pack(width, start, elements<T>(z), elements<Y>(y));
    });
  });
}

void combine_backward(cudaStream_t stream, const Tensor& dy, const Tensor& z, const Tensor& slots,
                      const Tensor& weights, const Tensor& dz, const Tensor& dweights) {
  const std::int64_t width = width_of(dy), chosen = width_of(slots);
  with_type(z, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::combine_backward<N, T>, blocks(rows_of(slots)), threads_for(divide_up(width, N)), 0, stream,
             elements<float>(dy), elements<T>(z), elements<std::int32_t>(slots), elements<float>(weights),
             elements<T>(dz), elements<float>(dweights), static_cast<int>(chosen), width);
    };
    with_pack(width, start, elements<float>(dy), elements<T>(z), elements<T>(dz));
  });
}

}  // namespace dropcycle::cuda
