// The rest of the CUDA runtime: the device, copies, errors.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "stand_in.hpp"

using namespace stand_in;

namespace {

int chosen_device = 0;

std::string_view name_of(cudaMemcpyKind kind) {
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return "a copy to the device";
    case cudaMemcpyDeviceToHost:
      return "a copy to the host";
    case cudaMemcpyDeviceToDevice:
      return "a copy within the device";
    default:
      die("a copy of unknown direction");
  }
}

bool overlap(const void* a, const void* b, std::size_t bytes) {
  const auto* const x = static_cast<const std::byte*>(a);
  const auto* const y = static_cast<const std::byte*>(b);
  return x < y + bytes && y < x + bytes;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  const char* const devices = std::getenv("DROPCYCLE_STAND_IN_DEVICES");
  *count = devices == nullptr ? 16 : std::atoi(devices);
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaSetDevice(int device) {
  chosen_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = chosen_device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  std::snprintf(text, static_cast<std::size_t>(length), "0000:%02x:00.0", device);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    default:
      return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      die(fmt::format("cudaDeviceGetAttribute of {}", static_cast<int>(attribute)));
  }
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const Entry entry;
  if (bytes == 0) return cudaSuccess;
  const std::string_view what = name_of(kind);
  const bool to_host = kind == cudaMemcpyDeviceToHost, from_host = kind == cudaMemcpyHostToDevice;
  if (!to_host) check_device(to, bytes, what, Use::asked_for);
  if (!from_host) check_device(from, bytes, what, Use::asked_for);
  demand(!to_host || is_pinned(to, bytes), "{}: the host's memory is not pinned", what);
  demand(!from_host || is_pinned(from, bytes), "{}: the host's memory is not pinned", what);
  demand(!(to_host || from_host) || !is_recording(stream), "{} in a graph, which would repeat it with other values",
         what);
  demand(to_host || from_host || !overlap(to, from, bytes), "{}: {} bytes overlap", what, bytes);
  if (to_host) std::memset(to, 0xFF, bytes);  // read too early it is NaN
  counters().copied_bytes += static_cast<std::int64_t>(to_host || from_host ? bytes : 2 * bytes);
  ++counters().copies;
  enqueue_once(stream, fmt::format("{} of {} bytes", what, bytes), [=] {
    if (!to_host) check_device(to, bytes, what, Use::runs);
    if (!from_host) check_device(from, bytes, what, Use::runs);
    std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const Entry entry;
  if (bytes == 0) return cudaSuccess;
  check_device(to, bytes, "cudaMemsetAsync", Use::asked_for);
  counters().set_bytes += static_cast<std::int64_t>(bytes);
  enqueue_once(stream, fmt::format("a fill of {} bytes", bytes), [=] {
    check_device(to, bytes, "cudaMemsetAsync", Use::runs);
    std::memset(to, value, bytes);
  });
  return cudaSuccess;
}

}  // extern "C"
