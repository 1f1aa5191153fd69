#include "dropcycle/layers/mlp.hpp"

#include "dropcycle/layers/tensor_parallel.hpp"

namespace dropcycle {

MlpLayer::MlpLayer(const ModelConfig& config, const Groups& groups)
    : config_(config),
      part_(part_of(0, config.intermediate_size, groups[GroupKind::tp])),
      width_(config.intermediate_size / groups[GroupKind::tp].size()) {
  check_divides(config.intermediate_size, "model.intermediate_size", groups[GroupKind::tp], "parallel.tensor");
}

void MlpLayer::declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const {
  const std::int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  const std::string block = prefix + "mlp.gate_up";
  specs.push_back({.name = prefix + "mlp_norm", .shape = {hidden}, .initial = Initial::ones, .role = Role::norm});
  specs.push_back({.name = prefix + "mlp.gate", .shape = {width, hidden}, .block = block, .part = part_});
  specs.push_back({.name = prefix + "mlp.up", .shape = {width, hidden}, .block = block, .part = part_});
  specs.push_back({.name = prefix + "mlp.down", .shape = {hidden, width}, .part = part_.along(1)});
}

Stream MlpLayer::forward(Context& c, const MlpParameters<Tensor>& w, const Stream& in, const Tensor& delta,
                         MlpSaved& saved) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t tokens = in.x.shape[0] * c.groups[GroupKind::tp].size(), width = width_;
  // 1. Residual addition and norm.
  const Tensor normed = norm_forward(c, in, w.norm, config_.norm_epsilon, saved.norm);
  // 2. Gate and up in one product.
  saved.gate_up = c.saved.tensor(c.compute, {tokens, 2 * width});
  c.ops.linear(gather(c, normed), c.weight(w.gate_up), saved.gate_up);
  // 3. SwiGLU.
  const bool keep = c.recompute != Recompute::selective;
  const Tensor activated = (keep ? c.saved : c.scratch).tensor(c.compute, {tokens, width});
  c.ops.swiglu(saved.gate_up, activated);
  saved.activated = keep ? activated : Tensor();
  // 4. Down.
  scatter_sum(c, delta, [&](const Tensor& y) { c.ops.linear(activated, c.weight(w.down), y); });
  return {saved.norm.sum, delta};
}

void MlpLayer::backward(Context& c, const MlpParameters<Tensor>& w, const MlpParameters<Tensor>& dw,
                        const MlpSaved& saved, const Tensor& g) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t tokens = saved.gate_up.shape[0], width = width_;
  // 4. Down.
  const Tensor dy = gather(c, in_compute(c, g));
  const Tensor dactivated = c.scratch.tensor(c.compute, {tokens, width});
  c.ops.linear_dx(dy, c.weight(w.down), dactivated);
  // 3. SwiGLU, in place; its output again where it wasn't kept (the down product's weight gradient needs it).
  const Tensor dgate_up = saved.gate_up, again = saved.activated ? Tensor() : dactivated;
  c.ops.swiglu_backward(dactivated, saved.gate_up, dgate_up, again);
  c.ops.linear_dw(dy, saved.activated ? saved.activated : again, dw.down);
  // 2. Gate and up.
  const Tensor dnormed = c.scratch.tensor(c.acc(), g.shape);
  scatter_sum(c, dnormed, [&](const Tensor& dx) { c.ops.linear_dx(dgate_up, c.weight(w.gate_up), dx); });
  c.ops.linear_dw(dgate_up, gather(c, norm_output(c, w.norm, config_.norm_epsilon, saved.norm)), dw.gate_up);
  // 1. Norm, onto the residual path's gradient.
  c.ops.rms_norm_backward(dnormed, saved.norm.sum, w.norm, saved.norm.inv_rms, g, g, dw.norm);
}

}  // namespace dropcycle
