// Where tensors live. The host reads and writes its own memory; a GPU's memory belongs to the operations and to upload
// and download.
#pragma once

#include <cstdint>
#include <string_view>

namespace dropcycle {

// All work of one device, operations and copies alike, runs in the order in which it was asked for, unless a function
// says otherwise.
class Device {
 public:
  virtual ~Device() = default;
  // "cpu" or "cuda".
  virtual std::string_view name() const = 0;
  // Whether the host may read and write its memory.
  virtual bool is_host() const = 0;
  // Zeroed memory, aligned for the widest loads. Throws std::bad_alloc on the host, Error{usage} (too little memory) on
  // a GPU.
  virtual void* allocate(std::int64_t size_bytes) = 0;
  // Behind the work that was asked for.
  virtual void release(void* memory) noexcept = 0;
  // Device memory = host memory; `from` may change when the call returns.
  virtual void upload(void* to, const void* from, std::int64_t size_bytes) = 0;
  // Host memory = device memory, when the call returns.
  virtual void download(void* to, const void* from, std::int64_t size_bytes) = 0;
  // Within the device; the ranges don't overlap.
  virtual void copy(void* to, const void* from, std::int64_t size_bytes) = 0;
  // Returns when all work is done. Throws Error{internal} for errors of the device since the last call.
  virtual void synchronize() = 0;
};

Device& host_device();

// The GPU of this process: number `local_rank` of those that the node shows. One a process: every call gives the same.
// Throws Error{usage} where there is no such GPU, or where this binary was built without CUDA.
Device& cuda_device(int local_rank);

}  // namespace dropcycle
