// Attention of the CUDA backend through cuDNN's flash kernels: operation graphs (attention_graph.hpp) made into
// execution plans (attention_plan.hpp), one for each shape, kept as long as this object lives.
//
// The deterministic backward pass keeps 2 B Nq S² bytes. Where a call of all sequences and heads would
// need more workspace than kMostWorkspaceBytes it becomes several, of as many sequences, and where one sequence is too
// many, of as many key/value heads as fit.
#pragma once

#include <memory>

#include "dropcycle/device/cuda.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle::cuda {

inline constexpr double kMostWorkspaceBytes = 2.5e9;

// What one call takes of the whole.
struct AttentionPart {
  std::int64_t sequences = 1, kv_heads = 1;
  bool operator==(const AttentionPart&) const = default;
};

// The largest part, of divisors of B and Nkv, whose backward pass keeps within `most_bytes`; kv_heads = 0 where not
// even one key/value head of one sequence does.
AttentionPart attention_part(const AttentionShape& shape, bool deterministic, double most_bytes = kMostWorkspaceBytes);

class FlashAttention {
 public:
  // deterministic: the backward pass adds in a fixed order. The device outlives it. Throws Error{internal} with cuDNN's
  // own words where a call fails.
  FlashAttention(CudaDevice& device, bool deterministic, double most_workspace_bytes = kMostWorkspaceBytes);
  ~FlashAttention();
  FlashAttention(const FlashAttention&) = delete;
  FlashAttention& operator=(const FlashAttention&) = delete;

  // Whether forward() takes it; what it doesn't take, own kernels must. It takes bf16, head sizes that are multiples of
  // 8 up to 128, as many keys as queries, heads at 16-byte boundaries, and masks without last_key. Nothing is asked of
  // the GPU.
  bool takes(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask) const;
  // Whether backward() takes it: the same, gradients in bf16 at 16-byte boundaries, and a workspace that fits.
  bool takes(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
             const AttentionHeads& dx) const;

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
