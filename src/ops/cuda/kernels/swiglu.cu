// SwiGLU: y = silu(gate) up, silu(g) = g s, s = 1 / (1 + exp(-g)); its adjoint
//   dgate = dy up s (1 + g (1 - s)),   dup = dy g s.
// Limit: memory. Blocks of a row's packs, so that no thread divides to find its row. Bytes: the least possible (forward
// 3 F a token, backward 5 F and 1 F for y again, in elements).
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

__device__ inline float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

// Where this thread's pack of its row begins: grid (rows, packs of a row in blocks).
template <int N>
__device__ std::int64_t column_of_thread() {
  return (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
}

template <int N, class T>
__global__ void swiglu(const T* gate_up, T* y, std::int64_t width) {
  const std::int64_t row = blockIdx.x, column = column_of_thread<N>();
  if (column >= width) return;
  const T* gates = gate_up + row * 2 * width + column;
  auto out = load<N>(gates);
  const auto up = load<N>(gates + width);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = out[i] * sigmoid(out[i]) * up[i];
  store(y + row * width + column, out);
}

// y may be null.
template <int N, class T>
__global__ void swiglu_backward(const T* dy, const T* gate_up, T* dgate_up, T* y, std::int64_t width) {
  const std::int64_t row = blockIdx.x, column = column_of_thread<N>();
  if (column >= width) return;
  const std::int64_t at = row * 2 * width + column, out = row * width + column;
  auto gate = load<N>(gate_up + at), up = load<N>(gate_up + at + width);
  const auto g = load<N>(dy + out);
  Pack<N> product;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float s = sigmoid(gate[i]), silu = gate[i] * s;
    product[i] = silu * up[i];
    gate[i] = g[i] * up[i] * s * (1.0F + gate[i] * (1.0F - s));
    up[i] = g[i] * silu;
  }
  store(dgate_up + at, gate);
  store(dgate_up + at + width, up);
  if (y != nullptr) store(y + out, product);
}

}  // namespace kernels

namespace {

template <int N>
dim3 row_blocks(const Tensor& y) {
  return blocks(rows_of(y), divide_up(width_of(y), std::int64_t{N} * threads_for(width_of(y) / N)));
}

void check_shapes(const Tensor& gate_up, const Tensor& y) {
  require(gate_up.elements() == 2 * y.elements() && width_of(gate_up) == 2 * width_of(y), "swiglu: {} for {}",
          to_string(gate_up.shape), to_string(y.shape));
}

}  // namespace

void swiglu(cudaStream_t stream, const Tensor& gate_up, const Tensor& y) {
  check_shapes(gate_up, y);
  with_type(y, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::swiglu<N, T>, row_blocks<N>(y), threads_for(width_of(y) / N), 0, stream, elements<T>(gate_up),
             elements<T>(y), width_of(y));
    };
    with_pack(width_of(y), start, elements<T>(gate_up), elements<T>(y));
  });
}

void swiglu_backward(cudaStream_t stream, const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up,
                     const Tensor& y) {
  check_shapes(gate_up, dy);
  check_shapes(dgate_up, dy);
  with_type(dy, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::swiglu_backward<N, T>, row_blocks<N>(dy), threads_for(width_of(dy) / N), 0, stream,
             elements<T>(dy), elements<T>(gate_up), elements<T>(dgate_up), elements<T>(y), width_of(dy));
    };
    with_pack(width_of(dy), start, elements<T>(dy), elements<T>(gate_up), elements<T>(dgate_up), elements<T>(y));
  });
}

}  // namespace dropcycle::cuda
