#include "dropcycle/layers/moe/moe.hpp"

namespace dropcycle {

namespace {

// Which tokens this rank's rows of the residual stream are.
std::vector<TokenRun> runs_of(const Context& c, const Microbatch& batch, const Tensor& rows) {
  return token_runs(batch, c.groups[GroupKind::tp].rank() * rows.shape[0], rows.shape[0]);
}

}  // namespace

MoeLayer::MoeLayer(const ModelConfig& config, std::int64_t layer, const Groups& groups)
    : config_(config),
      router_(config, layer),
      dispatcher_(config, groups),
      experts_(config, groups),
      partial_(groups[GroupKind::etp].size() > 1),
      first_expert_(groups[GroupKind::ep].rank() * dispatcher_.local_experts()) {}

void MoeLayer::declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const {
  specs.push_back(
      {.name = prefix + "mlp_norm", .shape = {config_.hidden_size}, .initial = Initial::ones, .role = Role::norm});
  specs.push_back({.name = prefix + "moe.router",
                   .shape = {config_.experts, config_.hidden_size},
                   .initial = Initial::router,
                   .role = Role::router});
  experts_.declare(prefix + "moe.", first_expert_, dispatcher_.local_experts(), specs);
}

Stream MoeLayer::forward(Context& c, const MoeParameters<Tensor>& w, const Microbatch& batch,
                         const RouterTraining& training, const Stream& in, const Tensor& delta, MoeSaved& saved,
                         RoutingStatistics& statistics) const {
  const ArenaScope scope(c.scratch);
  // 1. Residual addition and norm.
  const Tensor normed = norm_forward(c, in, w.norm, config_.norm_epsilon, saved.norm);
  // 2. Router.
  router_.forward(c, w.router, normed, runs_of(c, batch, normed), training, saved.router, statistics);
  // 3. Dispatch.
  saved.plan = dispatcher_.plan(c, saved.router.experts);
  saved.experts.input = dispatcher_.dispatch(c, saved.plan, normed, c.saved);
  // 4. Experts.
  const DType results_type = partial_ ? c.acc() : c.compute;
  const Tensor results = (dispatcher_.alone() ? c.saved : c.scratch).tensor(results_type, saved.experts.input.shape);
  experts_.forward(c, w.experts, saved.plan.offsets, saved.experts, results);
  // 5. Combine.
  saved.rows = dispatcher_.collect(c, saved.plan, results, c.saved);
  c.ops.combine(saved.rows, saved.plan.slots, saved.router.weights, delta);
  return {saved.norm.sum, delta};
}

void MoeLayer::backward(Context& c, const MoeParameters<Tensor>& w, const MoeParameters<Tensor>& dw,
                        const Microbatch& batch, const RouterTraining& training, const RoutingStatistics& statistics,
                        const MoeSaved& saved, const Tensor& g) const {
  const ArenaScope scope(c.scratch);
  // 5. Combine.
  const Tensor drows = c.scratch.tensor(c.compute, saved.rows.shape);
  const Tensor dweights = c.scratch.tensor(c.acc(), saved.router.weights.shape);
  c.ops.combine_backward(g, saved.rows, saved.plan.slots, saved.router.weights, drows, dweights);
  // 4. Experts.
  const Tensor dresults = dispatcher_.collect_backward(c, saved.plan, drows);
  const Tensor dinput = c.scratch.tensor(partial_ ? c.acc() : c.compute, saved.experts.input.shape);
  experts_.backward(c, w.experts, dw.experts, saved.plan.offsets, saved.experts, dresults, dinput);
  // 3. Dispatch.
  const Tensor dnormed = c.scratch.tensor(c.acc(), g.shape);
  dispatcher_.dispatch_backward(c, saved.plan, dinput, dnormed);
  // 2. Router.
  RouterSaved router = saved.router;
  if (training.jitter == 0) router.input = norm_output(c, w.norm, config_.norm_epsilon, saved.norm);
  router_.backward(c, w.router, router, statistics, training, runs_of(c, batch, g), dweights, dnormed, dw.router);
  // 1. Norm, onto the residual path's gradient.
  c.ops.rms_norm_backward(dnormed, saved.norm.sum, w.norm, saved.norm.inv_rms, g, g, dw.norm);
}

}  // namespace dropcycle
