#include "cuda_ops.hpp"

#include "dropcycle/ops/backends.hpp"
#include "graph_ops.hpp"

namespace dropcycle {

namespace cuda {

CudaOps::CudaOps(CudaDevice& device, bool deterministic)
    : KernelOps(device, device.stream()), products_(device), attention_(device, deterministic) {}

void CudaOps::linear(const Tensor& x, const Weight& w, const Tensor& y) { products_.linear(x, w.tensor, y); }

void CudaOps::linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) { products_.linear_dx(dy, w.tensor, dx); }

void CudaOps::linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) { products_.linear_dw(dy, x, dw); }

void CudaOps::grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w, const Tensor& y) {
  products_.grouped_linear(x, offsets, w.tensor, y);
}

void CudaOps::grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                                const Tensor& dx) {
  products_.grouped_linear_dx(dy, offsets, w.tensor, dx);
}

void CudaOps::grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                                const Tensor& dw) {
  products_.grouped_linear_dw(dy, x, offsets, dw);
}

void CudaOps::attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                        const Tensor& out, const Tensor& lse) {
  if (attention_.takes(shape, x, mask)) return attention_.forward(shape, x, mask, out, lse);
  KernelOps::attention(shape, x, mask, out, lse);
}

void CudaOps::attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                                 const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) {
  if (attention_.takes(shape, x, mask, dx)) return attention_.backward(shape, x, mask, out, lse, dout, dx);
  KernelOps::attention_backward(shape, x, mask, out, lse, dout, dx);
}

}  // namespace cuda

std::unique_ptr<Ops> make_cuda_ops(const OpsOptions& options) {
  CudaDevice& device = as_cuda(cuda_device(options.local_rank));
  std::unique_ptr<Ops> ops = std::make_unique<cuda::CudaOps>(device, options.deterministic);
  return options.graphs ? cuda::make_graph_ops(std::move(ops), device) : std::move(ops);
}

}  // namespace dropcycle
