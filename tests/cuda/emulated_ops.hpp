// The CUDA backend's own kernels on the processor, as a backend: memory of exactly the asked size, so that a sanitizer
// sees an access beyond it.
#pragma once

#include "../../src/ops/cuda/kernel_ops.hpp"
#include "../../src/ops/reference/reference_ops.hpp"

namespace dropcycle::test {

// Zeroed memory aligned as cudaMalloc's.
Device& exact_device();

// Products are the reference's.
class EmulatedOps : public cuda::KernelOps {
 public:
  EmulatedOps() : KernelOps(exact_device(), nullptr) {}
  void linear(const Tensor& x, const Weight& w, const Tensor& y) override { products_.linear(x, w, y); }
  void linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) override { products_.linear_dx(dy, w, dx); }
  void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) override { products_.linear_dw(dy, x, dw); }
  void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                      const Tensor& y) override {
    products_.grouped_linear(x, offsets, w, y);
  }
  void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                         const Tensor& dx) override {
    products_.grouped_linear_dx(dy, offsets, w, dx);
  }
  void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                         const Tensor& dw) override {
    products_.grouped_linear_dw(dy, x, offsets, dw);
  }

 private:
  ReferenceOps products_;
};

}  // namespace dropcycle::test
