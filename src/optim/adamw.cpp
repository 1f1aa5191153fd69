#include "dropcycle/optim/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dropcycle {

double learning_rate_at(const OptimizerConfig& c, std::int64_t steps, std::int64_t step) {
  if (step <= c.warmup_steps) {
    return c.learning_rate * static_cast<double>(step) / static_cast<double>(c.warmup_steps);
  }
  if (c.schedule == "constant") return c.learning_rate;
  const std::int64_t decay = std::max<std::int64_t>(1, steps - c.warmup_steps - c.constant_steps);
  const double progress = std::min(1.0, static_cast<double>(step - c.warmup_steps) / static_cast<double>(decay));
  const double remaining = c.schedule == "linear" ? 1 - progress : 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return c.min_learning_rate + (c.learning_rate - c.min_learning_rate) * remaining;
}

AdamW::AdamW(Model& model, const Groups& groups, const OptimizerConfig& config)
    : model_(model), groups_(groups), config_(config) {
  const ParameterStore& store = model.parameters();
  for (const GradientGroup group : kGradientGroups) {
    const Shape shape{store.kept_elements(group)};
    const DType acc = accumulator_of(store.compute());
    Device& device = model.ops().device();
    moments_[group] = {OwnedTensor(acc, shape, device), OwnedTensor(acc, shape, device)};
    for (std::size_t i = 0; i < store.specs().size(); ++i) {
      if (store.specs()[i].group != group) continue;
      const double decay = decay_of(store.specs()[i].role);
      const FlatRange range = store.range(i);
      const bool extends = !runs_.empty() && runs_.back().range.group == group && runs_.back().weight_decay == decay;
      if (extends) {
        runs_.back().range.last = range.last;
      } else {
        runs_.push_back({range, decay});
      }
    }
  }
}

double AdamW::decay_of(Role role) const {
  const bool excluded = (role == Role::norm && !config_.decay_norms) ||
                        (role == Role::embedding && !config_.decay_embeddings) ||
                        (role == Role::router && !config_.decay_router);
  return excluded ? 0 : config_.weight_decay;
}

double AdamW::squared_norm(GradientGroup group) const {
  const ParameterStore& store = model_.parameters();
  const Tensor gradients = store.gradients(group);
  double sum = 0;
  for (const KeptRange& owned : store.owned(group)) {
    std::int64_t first = owned.first;  // of the elements not counted yet
    const auto count_up_to = [&](std::int64_t last) {
      if (last > first) sum += model_.ops().squared_norm(gradients.rows(first, last - first));
    };
    for (std::size_t i = 0; i < store.specs().size(); ++i) {
      const FlatRange& range = store.range(i);
      if (range.group != group || store.specs()[i].owner || range.last <= first || range.first >= owned.last) continue;
      count_up_to(range.first);
      first = range.last;
    }
    count_up_to(owned.last);
  }
  return sum;
}

double AdamW::gradient_norm() const {
  double sum = 0;
  for (const GradientGroup group : kGradientGroups) sum += squared_norm(group);
  groups_.world().sum({&sum, 1});
  return std::sqrt(sum);
}

double AdamW::clip_factor(double norm) const {
  return config_.clip > 0 ? std::min(1.0, config_.clip / (norm + 1e-6)) : 1;
}

void AdamW::update(std::int64_t step, double learning_rate, double gradient_scale) {
  model_.wait_for_weights({});
  const ParameterStore& store = model_.parameters();
  for (const Run& run : runs_) {
    const GradientGroup group = run.range.group;
    for (const KeptRange& kept : store.kept(group)) {
      const std::int64_t first = std::max(run.range.first, kept.first), last = std::min(run.range.last, kept.last);
      if (first >= last) continue;
      const auto moment = [&](const Tensor& all) { return all.rows(kept.at + first - kept.first, last - first); };
      model_.ops().adamw({.learning_rate = learning_rate,
                          .beta1 = config_.beta1,
                          .beta2 = config_.beta2,
                          .epsilon = config_.epsilon,
                          .weight_decay = run.weight_decay,
                          .gradient_scale = gradient_scale,
                          .step = step},
                         store.gradients(group).rows(first, last - first), store.master(group, kept, first, last),
                         moment(moments_[group].m), moment(moments_[group].v),
                         store.in_halves(group) ? store.weights(group).rows(first, last - first) : Tensor());
    }
  }
  model_.weights_updated();
}

std::int64_t AdamW::bytes() const {
  std::int64_t sum = 0;
  for (const GradientGroup group : kGradientGroups) sum += first_moment(group).bytes() + second_moment(group).bytes();
  return sum;
}

}  // namespace dropcycle
