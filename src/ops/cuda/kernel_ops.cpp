#include "kernel_ops.hpp"

#include "kernels.hpp"

namespace dropcycle::cuda {

KernelOps::KernelOps(Device& device, cudaStream_t stream)
    : device_(device), stream_(stream), scratch_(kScratchBytes, device), norm_(sizeof(double), device) {}

void KernelOps::fill_zero(const Tensor& x) { cuda::fill_zero(stream_, x); }

void KernelOps::convert(const Tensor& x, const Tensor& out) { cuda::convert(stream_, x, out); }

void KernelOps::copy_columns(const Columns& x, const Columns& out, std::int64_t width) {
  cuda::copy_columns(stream_, x, out, width);
}

void KernelOps::add(const Tensor& a, const Tensor& b, const Tensor& y) { cuda::add(stream_, a, b, y); }

void KernelOps::jitter(const Tensor& x, const RandomStream& stream, std::uint64_t first, double amplitude,
                       const Tensor& y) {
  cuda::jitter(stream_, x, stream, first, amplitude, y);
}

void KernelOps::fill_normal(const RandomStream& stream, std::uint64_t first, double mean, double standard_deviation,
                            const Tensor& out) {
  cuda::fill_normal(stream_, stream, first, mean, standard_deviation, out);
}

void KernelOps::embedding(const Tensor& tokens, const Tensor& w, const Tensor& y) {
  cuda::embedding(stream_, tokens, w, y);
}

void KernelOps::embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) {
  cuda::embedding_backward(stream_, scratch(), dy, tokens, dw);
}

void KernelOps::add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon, const Tensor& sum,
                             const Tensor& y, const Tensor& inv_rms) {
  cuda::add_rms_norm(stream_, x, delta, w, epsilon, sum, y, inv_rms);
}

void KernelOps::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                                  const Tensor& dresidual, const Tensor& dx, const Tensor& dw) {
  cuda::rms_norm_backward(stream_, scratch(), dy, x, w, inv_rms, dresidual, dx, dw);
}

void KernelOps::rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies,
                     std::int64_t head_size, std::int64_t rotated_heads, int direction) {
  cuda::rope(stream_, x, positions, inverse_frequencies, head_size, rotated_heads, direction);
}

void KernelOps::attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                          const Tensor& out, const Tensor& lse) {
  cuda::attention(stream_, shape, x, mask, out, lse);
}

void KernelOps::attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                                   const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) {
  cuda::attention_backward(stream_, shape, x, mask, out, lse, dout, dx);
}

void KernelOps::swiglu(const Tensor& gate_up, const Tensor& y) { cuda::swiglu(stream_, gate_up, y); }

void KernelOps::swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) {
  cuda::swiglu_backward(stream_, dy, gate_up, dgate_up, y);
}

void KernelOps::router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) {
  cuda::router_logits(stream_, scratch(), x, w, logits);
}

void KernelOps::router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                                       const Tensor& dw) {
  cuda::router_logits_backward(stream_, scratch(), dlogits, x, w, dx, dw);
}

void KernelOps::route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
                      const Tensor& probabilities, const Tensor& lse) {
  cuda::route(stream_, logits, mode, experts, weights, probabilities, lse);
}

void KernelOps::route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights,
                               const Tensor& probabilities, const Tensor& lse, const Tensor& dweights,
                               const Tensor& dprobabilities, double z, const Tensor& dlogits) {
  cuda::route_backward(stream_, mode, experts, weights, probabilities, lse, dweights, dprobabilities, z, dlogits);
}

void KernelOps::sum_rows(const Tensor& x, const Tensor& out) { cuda::sum_rows(stream_, scratch(), x, out); }

void KernelOps::sort_rows(const Tensor& experts, const Tensor& counts, const Tensor& token_of_row,
                          const Tensor& slots) {
  cuda::sort_rows(stream_, scratch(), experts, counts, token_of_row, slots);
}

void KernelOps::gather_rows(const Tensor& x, const Tensor& index, const Tensor& out) {
  cuda::gather_rows(stream_, x, index, out);
}

void KernelOps::combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) {
  cuda::combine(stream_, z, slots, weights, y);
}

void KernelOps::combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights,
                                 const Tensor& dz, const Tensor& dweights) {
  cuda::combine_backward(stream_, dy, z, slots, weights, dz, dweights);
}

void KernelOps::cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                              const Tensor& dlogits) {
  cuda::cross_entropy(stream_, logits, targets, scale, losses, dlogits);
}

void KernelOps::cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first,
                                   const Tensor& part) {
  cuda::cross_entropy_part(stream_, logits, targets, first, part);
}

void KernelOps::cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets,
                                       std::int64_t first, double scale, const Tensor& losses, const Tensor& dlogits) {
  cuda::cross_entropy_of_parts(stream_, parts, logits, targets, first, scale, losses, dlogits);
}

void KernelOps::split_masters(const Tensor& masters, const Tensor& weight, const Tensor& low) {
  cuda::split_masters(stream_, masters, weight, low);
}

void KernelOps::join_masters(const Tensor& weight, const Tensor& low, const Tensor& masters) {
  cuda::join_masters(stream_, weight, low, masters);
}

double KernelOps::squared_norm(const Tensor& x) {
  cuda::squared_norm(stream_, scratch(), x, reinterpret_cast<double*>(norm_.data()));
  double sum = 0;
  device_.download(&sum, norm_.data(), sizeof sum);
  return sum;
}

void KernelOps::adamw(const AdamwArguments& arguments, const Tensor& gradient, const Tensor& master, const Tensor& m,
                      const Tensor& v, const Tensor& weight) {
  cuda::adamw(stream_, arguments, gradient, master, m, v, weight);
}

}  // namespace dropcycle::cuda
