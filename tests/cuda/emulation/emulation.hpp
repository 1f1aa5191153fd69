// CUDA kernels on the processor: the same source that nvcc compiles, compiled by g++ with DROPCYCLE_EMULATED. Every
// CUDA thread is a fiber. The threads of a block run in random order, and each until it waits: for its block at
// __syncthreads, for the lanes of its mask at a warp operation. Blocks run one after another in random order. Shared
// memory is filled with NaNs and stands between red zones, so that a value that another thread hasn't written yet, or
// that is out of bounds, shows. It knows no speed, no fast arithmetic and no tensor cores.
//
// Under AddressSanitizer the red zones are poisoned; under ThreadSanitizer only barriers and __syncwarp order threads,
// so that a missing one is a race at its line.
#pragma once

#include <cuda_bf16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace dropcycle::emulation {

// What a GPU would hang on or leave undefined: barriers that not all threads reach, lanes that never come, shuffles
// from lanes that take no part. The message names the thread and the line.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Place = std::source_location;

// The order of threads and blocks is a function of `seed`.
struct Options {
  std::uint64_t seed = 1;
};
Options& options();

// What launch() does with a kernel on a stream. At first it runs the kernel at once; a library that stands in for
// CUDA's runtime puts its own function here, which keeps the closure until the stream comes to it.
using Enqueue = void (*)(cudaStream_t stream, std::function<void()> closure);
extern Enqueue enqueue;

// Runs `thread` as every thread of the grid. Throws Error. One grid at a time.
void run(dim3 grid, dim3 block, std::size_t shared_bytes, std::function<void()> thread);

// ---- What kernels see of the thread that runs.
struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern Position position;

enum class WarpOperation : std::uint8_t { synchronize, exclusive_or, up, index, ballot, match };

void wait_for_block(const Place& place);
std::uint64_t wait_for_warp(WarpOperation operation, unsigned mask, std::uint64_t value, unsigned argument,
                            const Place& place);
// The block's array that belongs to `key`.
void* shared_array(const void* key, std::size_t size_bytes);
void* dynamic_shared();

template <class T>
T exchange(WarpOperation operation, unsigned mask, T value, unsigned argument, const Place& place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = wait_for_warp(operation, mask, bits, argument, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace dropcycle::emulation

#define threadIdx (dropcycle::emulation::position.thread)
#define blockIdx (dropcycle::emulation::position.block)
#define blockDim (dropcycle::emulation::position.block_size)
#define gridDim (dropcycle::emulation::position.grid_size)
#define SHARED_ARRAY(T, name, count) \
  static char name##_key_;           \
  T* const name = static_cast<T*>(dropcycle::emulation::shared_array(&name##_key_, sizeof(T) * (count)))
#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(dropcycle::emulation::dynamic_shared())

inline float __uint_as_float(unsigned word) { return std::bit_cast<float>(word); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline void __syncthreads(const std::source_location& place = std::source_location::current()) {
  dropcycle::emulation::wait_for_block(place);
}
inline void __syncwarp(unsigned mask = ~0U, const std::source_location& place = std::source_location::current()) {
  dropcycle::emulation::wait_for_warp(dropcycle::emulation::WarpOperation::synchronize, mask, 0, 0, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes,
                  const std::source_location& place = std::source_location::current()) {
  using enum dropcycle::emulation::WarpOperation;
  return dropcycle::emulation::exchange(exclusive_or, mask, value, static_cast<unsigned>(lanes), place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes,
                 const std::source_location& place = std::source_location::current()) {
  using enum dropcycle::emulation::WarpOperation;
  return dropcycle::emulation::exchange(up, mask, value, lanes, place);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, const std::source_location& place = std::source_location::current()) {
  using enum dropcycle::emulation::WarpOperation;
  return dropcycle::emulation::exchange(index, mask, value, static_cast<unsigned>(lane), place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const std::source_location& place = std::source_location::current()) {
  using enum dropcycle::emulation::WarpOperation;
  return static_cast<unsigned>(dropcycle::emulation::wait_for_warp(ballot, mask, predicate != 0, 0, place));
}
// The lanes that hold the same value.
inline unsigned __match_any_sync(unsigned mask, int value,
                                 const std::source_location& place = std::source_location::current()) {
  using enum dropcycle::emulation::WarpOperation;
  return static_cast<unsigned>(
      dropcycle::emulation::wait_for_warp(match, mask, static_cast<std::uint32_t>(value), 0, place));
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(3.141592653589793 * static_cast<double>(x)));
  *cosine = static_cast<float>(std::cos(3.141592653589793 * static_cast<double>(x)));
}

namespace dropcycle::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  std::tuple<Parameters...> values(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  emulation::enqueue(stream, [=] { emulation::run(grid, block, shared_bytes, [&] { std::apply(kernel, values); }); });
}

}  // namespace dropcycle::cuda
