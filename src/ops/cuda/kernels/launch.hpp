// The one way to start a kernel, and the words in which kernels name shared memory: the same source is compiled by nvcc
// for GPUs and by g++ with DROPCYCLE_EMULATED for the processor, where tests run it.
//
//   SHARED_ARRAY(T, name, count)   an array of the block; count is a constant
//   DYNAMIC_SHARED(T, name)        the shared_bytes of the launch
//   launch(kernel, grid, block, shared_bytes, stream, arguments...)   nothing for an empty grid
#pragma once

#if defined(DROPCYCLE_EMULATED)
#include <emulation.hpp>
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <tuple>
#include <utility>

#include "dropcycle/device/cuda.hpp"

#define SHARED_ARRAY(T, name, count) __shared__ T name[count]
#define DYNAMIC_SHARED(T, name)                                      \
  extern __shared__ __align__(16) unsigned char name##_of_launch_[]; \
  T* const name = reinterpret_cast<T*>(name##_of_launch_)

namespace dropcycle::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr std::size_t kWithoutAsking = 48 << 10;
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kWithoutAsking) {
    check_cuda(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "cudaFuncSetAttribute");
  }
  std::tuple<Parameters...> values(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  auto places = std::apply([](auto&... value) { return std::array<void*, sizeof...(Parameters)>{&value...}; }, values);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelExC(&config, function, places.data()), "cudaLaunchKernelExC");
}

}  // namespace dropcycle::cuda
#endif
