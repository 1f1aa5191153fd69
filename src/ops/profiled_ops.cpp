#include "profiled_ops.hpp"

#include "dropcycle/core/profile.hpp"

namespace dropcycle {
namespace {

class ProfiledOps final : public Ops {
 public:
  explicit ProfiledOps(std::unique_ptr<Ops> inner) : inner_(std::move(inner)) {}
  std::string_view name() const override { return inner_->name(); }
  Device& device() const override { return inner_->device(); }
  void linear(const Tensor& x, const Weight& w, const Tensor& y) override {
    const Span span(SpanKind::operation, "linear");
    inner_->linear(x, w, y);
  }
  void linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) override {
    const Span span(SpanKind::operation, "linear_dx");
    inner_->linear_dx(dy, w, dx);
  }
  void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) override {
    const Span span(SpanKind::operation, "linear_dw");
    inner_->linear_dw(dy, x, dw);
  }
  void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                      const Tensor& y) override {
    const Span span(SpanKind::operation, "grouped_linear");
    inner_->grouped_linear(x, offsets, w, y);
  }
  void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                         const Tensor& dx) override {
    const Span span(SpanKind::operation, "grouped_linear_dx");
    inner_->grouped_linear_dx(dy, offsets, w, dx);
  }
  void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                         const Tensor& dw) override {
    const Span span(SpanKind::operation, "grouped_linear_dw");
    inner_->grouped_linear_dw(dy, x, offsets, dw);
  }
  void fill_zero(const Tensor& x) override {
    const Span span(SpanKind::operation, "fill_zero");
    inner_->fill_zero(x);
  }
  void split_masters(const Tensor& masters, const Tensor& weight, const Tensor& low) override {
    const Span span(SpanKind::operation, "split_masters");
    inner_->split_masters(masters, weight, low);
  }
  void join_masters(const Tensor& weight, const Tensor& low, const Tensor& masters) override {
    const Span span(SpanKind::operation, "join_masters");
    inner_->join_masters(weight, low, masters);
  }
  void convert(const Tensor& x, const Tensor& out) override {
    const Span span(SpanKind::operation, "convert");
    inner_->convert(x, out);
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& y) override {
    const Span span(SpanKind::operation, "add");
    inner_->add(a, b, y);
  }
  void jitter(const Tensor& x, const RandomStream& stream, std::uint64_t first, double amplitude,
              const Tensor& y) override {
    const Span span(SpanKind::operation, "jitter");
    inner_->jitter(x, stream, first, amplitude, y);
  }
  void fill_normal(const RandomStream& stream, std::uint64_t first, double mean, double standard_deviation,
                   const Tensor& out) override {
    const Span span(SpanKind::operation, "fill_normal");
    inner_->fill_normal(stream, first, mean, standard_deviation, out);
  }
  void embedding(const Tensor& tokens, const Tensor& w, const Tensor& y) override {
    const Span span(SpanKind::operation, "embedding");
    inner_->embedding(tokens, w, y);
  }
  void embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) override {
    const Span span(SpanKind::operation, "embedding_backward");
    inner_->embedding_backward(dy, tokens, dw);
  }
  void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon, const Tensor& sum,
                    const Tensor& y, const Tensor& inv_rms) override {
    const Span span(SpanKind::operation, "add_rms_norm");
    inner_->add_rms_norm(x, delta, w, epsilon, sum, y, inv_rms);
  }
  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                         const Tensor& dresidual, const Tensor& dx, const Tensor& dw) override {
    const Span span(SpanKind::operation, "rms_norm_backward");
    inner_->rms_norm_backward(dy, x, w, inv_rms, dresidual, dx, dw);
  }
  void rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies, std::int64_t head_size,
            std::int64_t rotated_heads, int direction) override {
    const Span span(SpanKind::operation, "rope");
    inner_->rope(x, positions, inverse_frequencies, head_size, rotated_heads, direction);
  }
  void attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask, const Tensor& out,
                 const Tensor& lse) override {
    const Span span(SpanKind::operation, "attention");
    inner_->attention(shape, x, mask, out, lse);
  }
  void attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                          const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) override {
    const Span span(SpanKind::operation, "attention_backward");
    inner_->attention_backward(shape, x, mask, out, lse, dout, dx);
  }
  void copy_columns(const Columns& x, const Columns& out, std::int64_t width) override {
    const Span span(SpanKind::operation, "copy_columns");
    inner_->copy_columns(x, out, width);
  }
  void swiglu(const Tensor& gate_up, const Tensor& y) override {
    const Span span(SpanKind::operation, "swiglu");
    inner_->swiglu(gate_up, y);
  }
  void swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) override {
    const Span span(SpanKind::operation, "swiglu_backward");
    inner_->swiglu_backward(dy, gate_up, dgate_up, y);
  }
  void router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) override {
    const Span span(SpanKind::operation, "router_logits");
    inner_->router_logits(x, w, logits);
  }
  void router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                              const Tensor& dw) override {
    const Span span(SpanKind::operation, "router_logits_backward");
    inner_->router_logits_backward(dlogits, x, w, dx, dw);
  }
  void route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
             const Tensor& probabilities, const Tensor& lse) override {
    const Span span(SpanKind::operation, "route");
    inner_->route(logits, mode, experts, weights, probabilities, lse);
  }
  void route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights, const Tensor& probabilities,
                      const Tensor& lse, const Tensor& dweights, const Tensor& dprobabilities, double z,
                      const Tensor& dlogits) override {
    const Span span(SpanKind::operation, "route_backward");
    inner_->route_backward(mode, experts, weights, probabilities, lse, dweights, dprobabilities, z, dlogits);
  }
  void sum_rows(const Tensor& x, const Tensor& out) override {
    const Span span(SpanKind::operation, "sum_rows");
    inner_->sum_rows(x, out);
  }
  void sort_rows(const Tensor& experts, const Tensor& counts, const Tensor& token_of_row,
                 const Tensor& slots) override {
    const Span span(SpanKind::operation, "sort_rows");
    inner_->sort_rows(experts, counts, token_of_row, slots);
  }
  void gather_rows(const Tensor& x, const Tensor& index, const Tensor& out) override {
    const Span span(SpanKind::operation, "gather_rows");
    inner_->gather_rows(x, index, out);
  }
  void combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) override {
    const Span span(SpanKind::operation, "combine");
    inner_->combine(z, slots, weights, y);
  }
  void combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& dz,
                        const Tensor& dweights) override {
    const Span span(SpanKind::operation, "combine_backward");
    inner_->combine_backward(dy, z, slots, weights, dz, dweights);
  }
  void cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                     const Tensor& dlogits) override {
    const Span span(SpanKind::operation, "cross_entropy");
    inner_->cross_entropy(logits, targets, scale, losses, dlogits);
  }
  void cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first,
                          const Tensor& part) override {
    const Span span(SpanKind::operation, "cross_entropy_part");
    inner_->cross_entropy_part(logits, targets, first, part);
  }
  void cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets, std::int64_t first,
                              double scale, const Tensor& losses, const Tensor& dlogits) override {
    const Span span(SpanKind::operation, "cross_entropy_of_parts");
    inner_->cross_entropy_of_parts(parts, logits, targets, first, scale, losses, dlogits);
  }
  double squared_norm(const Tensor& x) override {
    const Span span(SpanKind::operation, "squared_norm");
    return inner_->squared_norm(x);
  }
  void adamw(const AdamwArguments& arguments, const Tensor& gradient, const Tensor& master, const Tensor& m,
             const Tensor& v, const Tensor& weight) override {
    const Span span(SpanKind::operation, "adamw");
    inner_->adamw(arguments, gradient, master, m, v, weight);
  }

 private:
  std::unique_ptr<Ops> inner_;
};

}  // namespace

std::unique_ptr<Ops> make_profiled_ops(std::unique_ptr<Ops> inner) {
  return std::make_unique<ProfiledOps>(std::move(inner));
}

}  // namespace dropcycle
