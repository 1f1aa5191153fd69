// Rotary positions, in place: (x_i, x_{i+D/2}) -> (x_i cos a - x_{i+D/2} sin a, x_{i+D/2} cos a + x_i sin a) with the
// angle a = position * inverse_frequency_i. Limit: memory. A block takes a token: its first threads compute the D/2
// cosines and sines once for all heads. The angle is reduced to an eighth of a turn in double, where a product of
// positions in the millions is still right to 1e-10, so that float sines have no large arguments. Bytes: the least
// possible.
#include <algorithm>

#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

constexpr int kMostPairs = 128;

// 1 KiB at most of a launch's arguments, of which there may be 4.
struct Frequencies {
  double values[kMostPairs];
};

struct Rotation {
  float cosine, sine;
};

__device__ inline Rotation rotation(double angle) {
  const double quarters = angle * 0.63661977236758134308;  // 2 / π
  const double whole = rint(quarters);
  Rotation r{};
  sincospif(static_cast<float>(quarters - whole) * 0.5F, &r.sine, &r.cosine);
  switch (static_cast<std::int64_t>(whole) & 3) {
    case 1:
      return {-r.sine, r.cosine};
    case 2:
      return {-r.cosine, -r.sine};
    case 3:
      return {r.sine, -r.cosine};
    default:
      return r;
  }
}

template <int N, class T>
__global__ void rope(T* x, const std::int32_t* positions, const __grid_constant__ Frequencies inverse_frequencies,
                     float direction, std::int64_t width, int heads, int half) {
  DYNAMIC_SHARED(float, cosines);
  float* sines = cosines + half;
  for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) {
    const Rotation r = rotation(positions[blockIdx.x] * inverse_frequencies.values[i]);
    cosines[i] = r.cosine;
    sines[i] = direction * r.sine;
  }
  __syncthreads();
  const int packs = half / N;
  for (int i = static_cast<int>(threadIdx.x); i < heads * packs; i += static_cast<int>(blockDim.x)) {
    const int pair = i % packs * N;
    T* low = x + blockIdx.x * width + i / packs * (2 * half) + pair;
    auto a = load<N>(low), b = load<N>(low + half);
    const auto c = load<N>(cosines + pair), s = load<N>(sines + pair);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float old = a[k];
      a[k] = old * c[k] - b[k] * s[k];
      b[k] = b[k] * c[k] + old * s[k];
    }
    store(low, a);
    store(low + half, b);
  }
}

}  // namespace kernels

void rope(cudaStream_t stream, const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies,
          std::int64_t head_size, std::int64_t rotated_heads, int direction) {
  const std::int64_t half = head_size / 2, width = width_of(x);
  require(head_size % 2 == 0 && rotated_heads * head_size <= width && inverse_frequencies.elements() == half &&
              half <= kernels::kMostPairs,
          "rope: {} heads of {} in rows of {}, {} frequencies", rotated_heads, head_size, width,
          inverse_frequencies.elements());
  kernels::Frequencies frequencies{};
  std::copy_n(inverse_frequencies.as<double>(), half, frequencies.values);
  with_type(x, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::rope<N, T>, blocks(positions.elements()), threads_for(rotated_heads * half / N),
             static_cast<std::size_t>(2 * half) * sizeof(float), stream, elements<T>(x),
             elements<std::int32_t>(positions), frequencies, static_cast<float>(direction), width,
             static_cast<int>(rotated_heads), static_cast<int>(half));
    };
    with_pack(half | width, start, elements<T>(x));
  });
}

}  // namespace dropcycle::cuda
