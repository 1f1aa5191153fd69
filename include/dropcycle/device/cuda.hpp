// What the CUDA backend's parts share: the device with its streams, and errors. Only sources that are built with CUDA
// include it.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "dropcycle/device/device.hpp"

namespace dropcycle {

// Throws Error{internal} that names the call and CUDA's own words, unless `result` is cudaSuccess.
void check_cuda(cudaError_t result, const char* call);

// A stream of its own, ordered against others by events only. Move-only.
class CudaStream {
 public:
  // high: its kernels get the next free processors of the GPU, before those that wait on other streams.
  enum class Priority { normal, high };
  explicit CudaStream(Priority priority = Priority::normal);
  CudaStream(CudaStream&& other) noexcept;
  CudaStream& operator=(CudaStream&& other) noexcept;
  ~CudaStream();
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream. Move-only.
class CudaEvent {
 public:
  CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept;
  CudaEvent& operator=(CudaEvent&& other) noexcept;
  ~CudaEvent();
  void record(cudaStream_t stream);
  // What is asked of `stream` from now on runs after the recorded point.
  void make_wait(cudaStream_t stream) const;
  // Whether the recorded point has been reached.
  bool reached() const;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaDevice : public Device {
 public:
  // Operations and copies run on it.
  virtual cudaStream_t stream() const = 0;
  // While the host waits for the GPU it calls `look` now and then; what `look` throws ends the wait.
  virtual void set_watch(std::function<void()> look) = 0;
};

// The device behind cuda_device(). Throws Error{internal} for another one.
CudaDevice& as_cuda(Device& device);

}  // namespace dropcycle
