// What kernels share: values of f32 or bf16 as floats in packs of 16-byte accesses, sums over warps and blocks, and the
// host's choice of types and sizes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "dropcycle/core/tensor.hpp"
#include "launch.hpp"

namespace dropcycle::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kThreads = 256;  // of a block, where nothing speaks for another number
constexpr int kPack = 8;       // elements that a thread takes at a time: 16 bytes of bf16, two times 16 bytes of f32

// ---- On the device.

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

// N elements as they lie in memory, read and written by as few accesses as there can be.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Stored {
  T values[N];
};

template <int N>
struct Pack {
  float values[N];
  __device__ float& operator[](int i) { return values[i]; }
  __device__ float operator[](int i) const { return values[i]; }
};

template <int N, class T>
__device__ Pack<N> load(const T* from) {
  const auto stored = *reinterpret_cast<const Stored<T, N>*>(from);
  Pack<N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack[i] = to_float(stored.values[i]);
  return pack;
}

template <int N, class T>
__device__ void store(T* to, const Pack<N>& pack) {
  Stored<T, N> stored;
#pragma unroll
  for (int i = 0; i < N; ++i) stored.values[i] = from_float<T>(pack[i]);
  *reinterpret_cast<Stored<T, N>*>(to) = stored;
}

// visit(first, size) for this thread's elements [first, first + size.value) of n: whole packs of N, and the last
// elements one by one.
template <int N, class Visit>
__device__ void visit_pack(std::int64_t n, Visit visit) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (first + N <= n) return visit(first, std::integral_constant<int, N>{});
  for (std::int64_t i = first; i < n; ++i) visit(i, std::integral_constant<int, 1>{});
}

// A butterfly: every lane gets the same bits.
template <class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
}

// The sum over a block of whole warps, in the order of the warps, for every thread.
template <class T>
__device__ T block_sum(T value) {
  SHARED_ARRAY(T, parts, kWarp);
  value = warp_sum(value);
  if (blockDim.x == kWarp) return value;
  __syncthreads();  // parts may still be read from an earlier sum
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += parts[warp];
  return sum;
}

// ---- On the host.

inline std::int64_t width_of(const Tensor& x) { return x.shape[x.shape.dims() - 1]; }
inline std::int64_t rows_of(const Tensor& x) { return width_of(x) == 0 ? 0 : x.elements() / width_of(x); }
inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The tensor's elements; null for an empty tensor. Throws Error{internal} if they aren't of type T.
template <class T>
T* elements(const Tensor& x) {
  if (!x) return nullptr;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return reinterpret_cast<__nv_bfloat16*>(x.as<BF16>());
  } else {
    return x.as<T>();
  }
}

// visit.operator()<T>() with T the type of x's elements, f32 or bf16.
template <class Visit>
void with_type(const Tensor& x, Visit visit) {
  if (x.dtype == DType::f32) return visit.template operator()<float>();
  require(x.dtype == DType::bf16, "the cuda backend computes with f32 and bf16, not with {}", name(x.dtype));
  visit.template operator()<__nv_bfloat16>();
}

// visit.operator()<N>() with N = kPack where all rows can be read 16 bytes at a time, else 1. `width`: elements from
// row to row.
template <class Visit, class... Elements>
void with_pack(std::int64_t width, Visit visit, const Elements*... rows) {
  const auto whole = [](const void* x) { return reinterpret_cast<std::uintptr_t>(x) % 16 == 0; };
  if (width % kPack == 0 && (whole(rows) && ...)) return visit.template operator()<kPack>();
  visit.template operator()<1>();
}

inline dim3 blocks(std::int64_t x, std::int64_t y = 1, std::int64_t z = 1) {
  return {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
}
// Blocks of kThreads threads with one thread for each pack of N elements.
template <int N>
dim3 blocks_for(std::int64_t elements) {
  return blocks(divide_up(elements, std::int64_t{N} * kThreads));
}
// Threads of a block that works through a row of `packs`: whole warps, as many as there is work for, at most `most`.
inline unsigned threads_for(std::int64_t packs, unsigned most = kThreads) {
  const std::int64_t warps = divide_up(packs, kWarp);
  return kWarp * static_cast<unsigned>(warps < 1 ? 1 : warps > most / kWarp ? most / kWarp : warps);
}

}  // namespace dropcycle::cuda
