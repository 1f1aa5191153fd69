// Attention of the CUDA backend through cuDNN's flash kernels: operation graphs (attention_graph.hpp) made into
// execution plans, one for each shape, kept for the process's life.
#pragma once

#include <memory>

#include "dropcycle/device/cuda.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle::cuda {

class FlashAttention {
 public:
  // deterministic: the backward pass adds in a fixed order, with more workspace. The device outlives it. Throws
  // Error{internal} with cuDNN's own words where a call fails.
  FlashAttention(CudaDevice& device, bool deterministic);
  ~FlashAttention();
  FlashAttention(const FlashAttention&) = delete;
  FlashAttention& operator=(const FlashAttention&) = delete;

  // Whether forward() and backward() take it; what they don't, own kernels must. They take bf16, head sizes that are
  // multiples of 8 up to 128, as many keys as queries, heads at 16-byte boundaries, and masks without last_key.
  // Nothing is asked of the GPU.
  static bool takes(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask);
  // The same of the gradients' places: dx.q, dx.k and dx.v are bf16 at 16-byte boundaries.
  static bool takes(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                    const AttentionHeads& dx);

  // As Ops::attention and Ops::attention_backward, on the device's stream.
  void forward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask, const Tensor& out,
               const Tensor& lse);
  void backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask, const Tensor& out,
                const Tensor& lse, const Tensor& dout, const AttentionHeads& dx);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dropcycle::cuda
