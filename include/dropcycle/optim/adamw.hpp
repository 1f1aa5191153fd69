// AdamW with fp32 master weights on the parameter store's flat arrays, gradient norm and learning-rate schedules.
#pragma once

#include <cstdint>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/model/model.hpp"

namespace dropcycle {

// Learning rate of update `step` (1 is the first) of `steps`:
//   warm-up   s <= warmup_steps:           lr s / warmup_steps
//   decay     from lr to min over the steps that warm-up and constant end leave, by cosine or straight line
//   end       last constant_steps:         min
//   schedule "constant": lr after the warm-up.
double learning_rate_at(const OptimizerConfig& config, std::int64_t steps, std::int64_t step);

class AdamW {
 public:
  AdamW(Model& model, const Groups& groups, const OptimizerConfig& config);

  // Global 2-norm of the (reduced) gradients; each element counts once, on the rank that owns it, so that the bits
  // don't depend on whether the optimizer is sharded. Collective over the world.
  double gradient_norm() const;
  // min(1, clip / (norm + 1e-6)), as PyTorch's and Megatron-LM's clipping; 1 where clip is 0.
  double clip_factor(double norm) const;
  // One update of masters and weights (formula: Ops::adamw); Model::weights_updated() follows. Weight decay leaves out
  // the roles that the configuration excludes.
  void update(std::int64_t step, double learning_rate, double gradient_scale);

  // First and second moments of what the rank keeps (ParameterStore::kept), for checkpoints.
  const Tensor& first_moment(GradientGroup group) const { return moments_[group].m; }
  const Tensor& second_moment(GradientGroup group) const { return moments_[group].v; }
  // Bytes of the moments.
  std::int64_t bytes() const;

 private:
  struct Moments {
    OwnedTensor m, v;
  };
  // Neighbouring parameters with equal decay.
  struct Run {
    FlatRange range;
    double weight_decay;
  };
  double decay_of(Role role) const;
  // Of what this rank owns of a group's gradients.
  double squared_norm(GradientGroup group) const;

  Model& model_;
  const Groups& groups_;
  OptimizerConfig config_;
  std::vector<Run> runs_;
  PerGroup<Moments> moments_;
};

}  // namespace dropcycle
