#include "dropcycle/layers/moe/experts.hpp"

#include <fmt/format.h>

namespace dropcycle {

namespace {

void progress(Request* under_way) {
  if (under_way) under_way->test();
}

}  // namespace

Experts::Experts(const ModelConfig& config, const Groups& groups)
    : config_(config),
      part_(part_of(0, config.intermediate_size, groups[GroupKind::etp])),
      width_(config.intermediate_size / groups[GroupKind::etp].size()) {
  check_divides(config.intermediate_size, "model.intermediate_size", groups[GroupKind::etp], "parallel.expert_tensor");
}

void Experts::declare(const std::string& prefix, std::int64_t first, std::int64_t count,
                      std::vector<ParameterSpec>& specs) const {
  const std::int64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  const auto add = [&](std::int64_t e, const char* matrix, const Shape& shape, const char* block, const Part& part) {
    specs.push_back({.name = fmt::format("{}experts.{}.{}", prefix, e, matrix),
                     .shape = shape,
                     .group = GradientGroup::expert,
                     .block = prefix + block,
                     .part = part});
  };
  for (std::int64_t e = first; e < first + count; ++e) {
    add(e, "gate", {width, hidden}, "experts.gate_up", part_);
    add(e, "up", {width, hidden}, "experts.gate_up", part_);
  }
  for (std::int64_t e = first; e < first + count; ++e) add(e, "down", {hidden, width}, "experts.down", part_.along(1));
}

void Experts::forward(Context& c, const ExpertParameters<Tensor>& w, std::span<const std::int64_t> offsets,
                      ExpertsSaved& saved, const Tensor& y, Request* under_way) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t rows = offsets.back(), width = width_;
  // 1. Gate and up.
  saved.gate_up = c.routed.tensor(c.compute, {rows, 2 * width});
  c.ops.grouped_linear(saved.input, offsets, c.weight(w.gate_up), saved.gate_up);
  progress(under_way);
  // 2. SwiGLU.
  const bool keep = c.recompute != Recompute::selective;
  const Tensor activated = (keep ? c.routed : c.scratch).tensor(c.compute, {rows, width});
  c.ops.swiglu(saved.gate_up, activated);
  saved.activated = keep ? activated : Tensor();
  progress(under_way);
  // 3. Down.
  c.ops.grouped_linear(activated, offsets, c.weight(w.down), y);
  progress(under_way);
}

void Experts::backward(Context& c, const ExpertParameters<Tensor>& w, const ExpertParameters<Tensor>& dw,
                       std::span<const std::int64_t> offsets, const ExpertsSaved& saved, const Tensor& dy,
                       const Tensor& dx, Request* under_way) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t rows = offsets.back(), width = width_;
  // 3. Down.
  const Tensor dactivated = c.scratch.tensor(c.compute, {rows, width});
  c.ops.grouped_linear_dx(dy, offsets, c.weight(w.down), dactivated);
  progress(under_way);
  // 2. SwiGLU, in place; its output again where it wasn't kept.
  const Tensor dgate_up = saved.gate_up, again = saved.activated ? Tensor() : dactivated;
  c.ops.swiglu_backward(dactivated, saved.gate_up, dgate_up, again);
  c.ops.grouped_linear_dw(dy, saved.activated ? saved.activated : again, offsets, dw.down);
  progress(under_way);
  // 1. Gate and up.
  c.ops.grouped_linear_dx(dgate_up, offsets, c.weight(w.gate_up), dx);
  progress(under_way);
  c.ops.grouped_linear_dw(dgate_up, saved.input, offsets, dw.gate_up);
}

}  // namespace dropcycle
