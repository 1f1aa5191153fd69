#include "dropcycle/layers/mlp.hpp"

namespace dropcycle {

void MlpLayer::declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const {
  const std::int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  const std::string block = prefix + "mlp.gate_up";
  specs.push_back({.name = prefix + "mlp_norm", .shape = {hidden}, .initial = Initial::ones, .role = Role::norm});
  specs.push_back({.name = prefix + "mlp.gate", .shape = {width, hidden}, .block = block});
  specs.push_back({.name = prefix + "mlp.up", .shape = {width, hidden}, .block = block});
  specs.push_back({.name = prefix + "mlp.down", .shape = {hidden, width}});
}

Stream MlpLayer::forward(Context& c, const MlpParameters<Tensor>& w, const Stream& in, const Tensor& delta,
                         MlpSaved& saved) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t tokens = in.x.shape[0], width = config_.intermediate_size;
  // 1. Residual addition and norm.
  const Tensor normed = norm_forward(c, in, w.norm, config_.norm_epsilon, saved.norm);
  // 2. Gate and up in one product.
  saved.gate_up = c.saved.tensor(c.compute, {tokens, 2 * width});
  c.ops.linear(normed, c.weight(w.gate_up), saved.gate_up);
  // 3. SwiGLU.
  const bool keep = c.recompute != Recompute::selective;
  const Tensor activated = (keep ? c.saved : c.scratch).tensor(c.compute, {tokens, width});
  c.ops.swiglu(saved.gate_up, activated);
  saved.activated = keep ? activated : Tensor();
  // 4. Down.
  c.ops.linear(activated, c.weight(w.down), delta);
  return {saved.norm.sum, delta};
}

void MlpLayer::backward(Context& c, const MlpParameters<Tensor>& w, const MlpParameters<Tensor>& dw,
                        const MlpSaved& saved, const Tensor& g) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t tokens = g.shape[0], width = config_.intermediate_size;
  // 4. Down.
  const Tensor dactivated = c.scratch.tensor(c.compute, {tokens, width});
  c.ops.linear_dx(g, c.weight(w.down), dactivated);
  // 3. SwiGLU (its output again where it wasn't kept: the down product's weight gradient needs it).
  const Tensor dgate_up = c.scratch.tensor(c.compute, {tokens, 2 * width});
  const Tensor again = saved.activated ? Tensor() : c.scratch.tensor(c.compute, {tokens, width});
  c.ops.swiglu_backward(dactivated, saved.gate_up, dgate_up, again);
  c.ops.linear_dw(g, saved.activated ? saved.activated : again, dw.down);
  // 2. Gate and up.
  const Tensor dnormed = c.scratch.tensor(c.compute, g.shape);
  c.ops.linear_dx(dgate_up, c.weight(w.gate_up), dnormed);
  c.ops.linear_dw(dgate_up, norm_output(c, w.norm, config_.norm_epsilon, saved.norm), dw.gate_up);
  // 1. Norm, onto the residual path's gradient.
  c.ops.rms_norm_backward(dnormed, saved.norm.sum, w.norm, saved.norm.inv_rms, g, g, dw.norm);
}

}  // namespace dropcycle
