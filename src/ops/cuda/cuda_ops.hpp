// Ops on a GPU: products of cuBLASLt, attention of cuDNN where it takes it, own kernels for everything else. Everything
// runs in order on the device's stream. A step that repeats the shapes of an earlier one allocates nothing here.
#pragma once

#include "attention.hpp"
#include "kernel_ops.hpp"
#include "products.hpp"

namespace dropcycle::cuda {

class CudaOps : public KernelOps {
 public:
  // deterministic: attention's backward pass gives the same bits in every run, as all else does anyway. The device
  // outlives it.
  CudaOps(CudaDevice& device, bool deterministic);

  void linear(const Tensor& x, const Weight& w, const Tensor& y) override;
  void linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) override;
  void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) override;
  void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                      const Tensor& y) override;
  void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                         const Tensor& dx) override;
  void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                         const Tensor& dw) override;
  void attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask, const Tensor& out,
                 const Tensor& lse) override;
  void attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                          const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) override;

 private:
  Products products_;
  FlashAttention attention_;
};

}  // namespace dropcycle::cuda
