#include "dropcycle/layers/moe/moe.hpp"

#include <algorithm>
#include <functional>

namespace dropcycle {

namespace {

// Which tokens this rank's rows of the residual stream are.
std::vector<TokenRun> runs_of(const Context& c, const Microbatch& batch, const Tensor& rows) {
  return token_runs(batch, c.groups[GroupKind::tp].rank() * rows.shape[0], rows.shape[0]);
}

using Travelling = std::array<TravellingRows, kDispatchParts>;

// What travels while the experts of part p compute: the next part's rows, or the results of the part before.
Request* under_way(const Travelling& there, const Travelling& back, std::size_t p, std::size_t parts) {
  if (p + 1 < parts) return there[p + 1].request.get();
  return p > 0 ? back[p - 1].request.get() : nullptr;
}

}  // namespace

MoeLayer::MoeLayer(const ModelConfig& config, std::int64_t layer, const Groups& groups)
    : config_(config),
      router_(config, layer),
      dispatcher_(config, groups),
      experts_(config, groups),
      partial_(groups[GroupKind::etp].size() > 1),
      first_expert_(groups[GroupKind::ep].rank() * dispatcher_.local_experts()) {}

bool MoeLayer::sorts_again(const Context& c) const {
  return dispatcher_.alone() && c.recompute == Recompute::selective;
}

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
  router_.forward(c, w.router, normed, runs_of(c, batch, normed), training, saved.router);
  // 3. Dispatch.
  const auto parts = std::span(saved.parts).first(static_cast<std::size_t>(c.dispatch_parts));
  Travelling there, back;
  const auto even = static_cast<double>(saved.router.experts.elements() * c.groups[GroupKind::etp].size());
  std::int64_t first = 0;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(config_.experts));
  saved.load = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const auto last = normed.shape[0] * static_cast<std::int64_t>(p + 1) / std::ssize(parts);
    parts[p] = {.first = first, .count = last - first};
    parts[p].plan = dispatcher_.plan(c, parts[p].of(saved.router.experts));
    first = last;
    saved.load += static_cast<double>(parts[p].plan.rows()) / even;
    std::ranges::transform(counts, parts[p].plan.counts, counts.begin(), std::plus<>());
  }
  router_.count(c, saved.router, counts, statistics);
  Arena& rows = dispatcher_.alone() && !sorts_again(c) ? c.routed : c.scratch;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    there[p] = dispatcher_.send(c, parts[p].plan, dispatcher_.sort(c, parts[p].plan, parts[p].of(normed), rows));
  }
  // 4. Experts.
  for (std::size_t p = 0; p < parts.size(); ++p) {
    DispatchedPart& part = parts[p];
    part.experts.input = dispatcher_.receive(c, part.plan, there[p], c.routed);
    const DType type = partial_ ? c.acc() : c.compute;
    const Tensor results = (dispatcher_.alone() ? c.routed : c.scratch).tensor(type, part.experts.input.shape);
    experts_.forward(c, w.experts, part.plan.offsets, part.experts, results, under_way(there, back, p, parts.size()));
    back[p] = dispatcher_.send_back(c, part.plan, results, c.routed);
    if (sorts_again(c)) part.experts.input = Tensor();
  }
  // 5. Combine.
  for (std::size_t p = 0; p < parts.size(); ++p) {
    parts[p].rows = back[p].arrived();
    c.ops.combine(parts[p].rows, parts[p].plan.slots, parts[p].of(saved.router.weights), parts[p].of(delta));
  }
  return {saved.norm.sum, delta};
}

void MoeLayer::backward(Context& c, const MoeParameters<Tensor>& w, const MoeParameters<Tensor>& dw,
                        const Microbatch& batch, const RouterTraining& training, const RoutingStatistics& statistics,
                        MoeSaved& saved, const Tensor& g) const {
  const ArenaScope scope(c.scratch);
  const auto parts = std::span(saved.parts).first(static_cast<std::size_t>(c.dispatch_parts));
  Travelling there, back;
  // 5. Combine.
  const Tensor dweights = c.scratch.tensor(c.acc(), saved.router.weights.shape);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const DispatchedPart& part = parts[p];
    const Tensor drows = c.scratch.tensor(c.compute, part.rows.shape);
    c.ops.combine_backward(part.of(g), part.rows, part.plan.slots, part.of(saved.router.weights), drows,
                           part.of(dweights));
    there[p] = dispatcher_.send(c, part.plan, drows);
  }
  const Tensor normed = norm_output(c, w.norm, config_.norm_epsilon, saved.norm);
  // 4. Experts.
  for (std::size_t p = 0; p < parts.size(); ++p) {
    DispatchedPart& part = parts[p];
    if (sorts_again(c)) part.experts.input = dispatcher_.sort(c, part.plan, part.of(normed), c.scratch);
    const Tensor dresults = dispatcher_.receive(c, part.plan, there[p], c.scratch);
    const Tensor dinput = c.scratch.tensor(partial_ ? c.acc() : c.compute, part.experts.input.shape);
    experts_.backward(c, w.experts, dw.experts, part.plan.offsets, part.experts, dresults, dinput,
                      under_way(there, back, p, parts.size()));
    back[p] = dispatcher_.send_back(c, part.plan, dinput, c.scratch);
  }
  // 3. Dispatch.
  const Tensor dnormed = c.scratch.tensor(c.acc(), g.shape);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    c.ops.combine(back[p].arrived(), parts[p].plan.slots, {}, parts[p].of(dnormed));
  }
  // 2. Router.
  RouterSaved router = saved.router;
  if (training.jitter == 0) router.input = normed;
  router_.backward(c, w.router, router, statistics, training, runs_of(c, batch, g), dweights, dnormed, dw.router);
  // 1. Norm, onto the residual path's gradient.
  c.ops.rms_norm_backward(dnormed, saved.norm.sum, w.norm, saved.norm.inv_rms, g, g, dw.norm);
}

}  // namespace dropcycle
