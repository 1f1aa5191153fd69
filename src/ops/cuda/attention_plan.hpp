// Operation graphs as cuDNN's execution plans (cuDNN 9's backend API). A plan is made for the properties of a device,
// which can be asked of a GPU or read from text: so that the same code is tried where there is no GPU.
#pragma once

#include <cudnn.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_graph.hpp"

namespace dropcycle::cuda {

// Throws Error{internal} that names the call, with cuDNN's own words, unless `result` is success.
void check_cudnn(cudnnStatus_t result, const char* call);

// A cuDNN backend descriptor. Move-only.
class CudnnDescriptor {
 public:
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);
  CudnnDescriptor(CudnnDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~CudnnDescriptor();
  cudnnBackendDescriptor_t get() const { return descriptor_; }
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count, const void* values);
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value);
  void finalize();

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// Of the GPU behind a handle.
CudnnDescriptor device_properties(cudnnHandle_t handle);
// From cuDNN's JSON representation of them.
CudnnDescriptor device_properties(const std::string& json);

class CudnnPlan {
 public:
  // The first plan that the heuristics (mode A) propose and that can be built. deterministic: without engines that
  // cuDNN notes as adding in varying order. Throws Error{internal}, with cuDNN's last words, where there is none.
  CudnnPlan(const Graph& graph, const CudnnDescriptor& device, bool deterministic);
  std::int64_t workspace_bytes() const { return workspace_bytes_; }
  // Enqueues on the handle's stream. Of every tensor that isn't virtual: its id and memory; of numbers a host pointer,
  // read before the call returns.
  void execute(cudnnHandle_t handle, std::span<const std::pair<std::int64_t, void*>> memory, void* workspace) const;

 private:
  CudnnDescriptor plan_;
  std::int64_t workspace_bytes_ = 0;
};

}  // namespace dropcycle::cuda
