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
    const Shape shape{store.elements(group)};
    const DType acc = accumulator_of(store.compute());
    moments_[group] = {OwnedTensor(acc, shape), OwnedTensor(acc, shape)};
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
  std::int64_t first = 0;  // of the elements not counted yet
  for (std::size_t i = 0; i < store.specs().size(); ++i) {
    if (store.specs()[i].group != group || store.specs()[i].owner) continue;
    sum += model_.ops().squared_norm(gradients.rows(first, store.range(i).first - first));
    first = store.range(i).last;
  }
  return sum + model_.ops().squared_norm(gradients.rows(first, gradients.elements() - first));
}

double AdamW::gradient_norm() const {
  double dense = squared_norm(GradientGroup::dense), experts = squared_norm(GradientGroup::expert);
  groups_[GroupKind::tp].all_reduce(Tensor(&dense, {1}));
  groups_[GroupKind::etp].all_reduce(Tensor(&experts, {1}));
  groups_[GroupKind::ep].all_reduce(Tensor(&experts, {1}));
  double all = dense + squared_norm(GradientGroup::replicated) + experts;
  groups_[GroupKind::pp].all_reduce(Tensor(&all, {1}));
  return std::sqrt(all);
}

double AdamW::clip_factor(double norm) const {
  return config_.clip > 0 ? std::min(1.0, config_.clip / (norm + 1e-6)) : 1;
}

void AdamW::update(std::int64_t step, double learning_rate, double gradient_scale) {
  ParameterStore& store = model_.parameters();
  for (const Run& run : runs_) {
    const auto part = [&](const Tensor& flat) {
      return flat ? flat.rows(run.range.first, run.range.last - run.range.first) : Tensor();
    };
    const GradientGroup group = run.range.group;
    model_.ops().adamw({.learning_rate = learning_rate,
                        .beta1 = config_.beta1,
                        .beta2 = config_.beta2,
                        .epsilon = config_.epsilon,
                        .weight_decay = run.weight_decay,
                        .gradient_scale = gradient_scale,
                        .step = step},
                       part(store.gradients(group)), part(store.masters(group)), part(first_moment(group)),
                       part(second_moment(group)), part(store.weights(group)));
  }
  store.advance_version();
}

}  // namespace dropcycle
