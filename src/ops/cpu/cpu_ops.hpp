// Ops on the processor: products of oneDNN or our own (products.hpp), kernels vectorised for the instruction set found
// at run time, OpenMP. A step that repeats the shapes of an earlier one allocates nothing here.
#pragma once

#include <vector>

#include "dropcycle/ops/ops.hpp"
#include "products.hpp"

namespace dropcycle::cpu {

class CpuOps : public Ops {
 public:
  explicit CpuOps(const OpsOptions& options);
  std::string_view name() const override { return "cpu"; }

  void linear(const Tensor& x, const Weight& w, const Tensor& y) override;
  void linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) override;
  void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) override;
  void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                      const Tensor& y) override;
  void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                         const Tensor& dx) override;
  void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                         const Tensor& dw) override;
  void fill_zero(const Tensor& x) override;
  void convert(const Tensor& x, const Tensor& out) override;
  void split_masters(const Tensor& masters, const Tensor& weight, const Tensor& low) override;
  void join_masters(const Tensor& weight, const Tensor& low, const Tensor& masters) override;
  void copy_columns(const Columns& x, const Columns& out, std::int64_t width) override;
  void add(const Tensor& a, const Tensor& b, const Tensor& y) override;
  void jitter(const Tensor& x, const RandomStream& stream, std::uint64_t first, double amplitude,
              const Tensor& y) override;
  void fill_normal(const RandomStream& stream, std::uint64_t first, double mean, double standard_deviation,
                   const Tensor& out) override;
  void embedding(const Tensor& tokens, const Tensor& w, const Tensor& y) override;
  void embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) override;
  void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon, const Tensor& sum,
                    const Tensor& y, const Tensor& inv_rms) override;
  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                         const Tensor& dresidual, const Tensor& dx, const Tensor& dw) override;
  void rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies, std::int64_t head_size,
            std::int64_t rotated_heads, int direction) override;
  void attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask, const Tensor& out,
                 const Tensor& lse) override;
  void attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                          const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) override;
  void swiglu(const Tensor& gate_up, const Tensor& y) override;
  void swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) override;
  void router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) override;
  void router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                              const Tensor& dw) override;
  void route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
             const Tensor& probabilities, const Tensor& lse) override;
  void route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights, const Tensor& probabilities,
                      const Tensor& lse, const Tensor& dweights, const Tensor& dprobabilities, double z,
                      const Tensor& dlogits) override;
  void sum_rows(const Tensor& x, const Tensor& out) override;
  void sort_rows(const Tensor& experts, const Tensor& counts, const Tensor& token_of_row, const Tensor& slots) override;
  void gather_rows(const Tensor& x, const Tensor& index, const Tensor& out) override;
  void combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) override;
  void combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& dz,
                        const Tensor& dweights) override;
  void cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                     const Tensor& dlogits) override;
  void cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& part) override;
  void cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets, std::int64_t first,
                              double scale, const Tensor& losses, const Tensor& dlogits) override;
  double squared_norm(const Tensor& x) override;
  void adamw(const AdamwArguments& arguments, const Tensor& gradient, const Tensor& master, const Tensor& m,
             const Tensor& v, const Tensor& weight) override;

 private:
  // Cosines and sines [positions, D/2] of one set of frequencies, extended as positions come.
  struct RotaryTable {
    std::vector<double> frequencies;
    std::vector<float> cosines, sines;
    std::int64_t positions = 0;
  };
  void extend_rotary_table(const Tensor& inverse_frequencies, std::int64_t positions);
  void run_attention(Type type, AttentionArguments& arguments, bool backwards);

  InstructionSet set_;
  bool bf16_attention_;
  Bf16Kernels bf16_kernels_;  // vdpbf16ps
  Kernels kernels_;
  Products products_;
  Workspace partial_sums_, attention_scratch_;
  RotaryTable rotary_;
};

}  // namespace dropcycle::cpu
