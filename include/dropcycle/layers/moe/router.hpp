// The router: which K of E experts a token goes to, with what weight, and the balancing and z losses.
//
//   logits = x W_routerᵀ (fp32; x with jitter in training);  g = softmax over the K largest (the paper's Eq. 3)
//
// Balancing loss. With c_le the number of (token, k) pairs that layer l sends to expert e and p_lte the softmax over
// all E logits, of a microbatch of T tokens:
//   all_layers (the paper's code):  f_e = Σ_l c_le / (L T),  P_e = Σ_lt p_lte / (L T),  loss = E Σ_e f_e P_e
//   per_layer:                      loss = (1/L) Σ_l E Σ_e f_le P_le
// all_layers is also transformers' load_balancing_loss_func (Mixtral), which takes the rows of all layers as one batch.
// Balanced, both are K. f is a constant in backward: dloss/dp_lte = E f_e / (L T), E f_le / (L T).
// z-loss (Zoph et al., 2022): mean over l and t of logsumexp(logits)².
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context_parallel.hpp"

namespace dropcycle {

enum class BalanceScope { all_layers, per_layer };

// The losses' coefficients and the jitter, as a training step uses them.
struct RouterTraining {
  double balance = 0;  // coefficient, already divided by the number of microbatches in the global batch
  BalanceScope scope = BalanceScope::all_layers;
  double z = 0;       // likewise
  double jitter = 0;  // 0 outside training
  std::uint64_t seed = 0, step = 0;
};

// Sums over the microbatch that the losses are made of, one row a layer: of this rank's tokens, until sum_over() makes
// them those of all tokens of the microbatch.
struct RoutingStatistics {
  RoutingStatistics() = default;
  RoutingStatistics(std::int64_t layers, std::int64_t experts, std::int64_t tokens = 0);

  // Sums over the ranks that share the microbatch's sequences (GroupKind::sequence).
  void sum_over(Communicator& ranks);

  std::int64_t layers = 0, experts = 0, tokens = 0;
  std::vector<double> counts;         // [L,E]: c_le
  std::vector<double> probabilities;  // [L,E]: Σ_t p_lte
  std::vector<double> squared_lse;    // [L]: Σ_t lse²
  std::vector<double> shares;         // [E]: Σ_l c_le / (L T), all_layers' f, of the layers added so far

  // Adds the parts of layers [first, last) to the shares.
  void add_shares(std::int64_t first, std::int64_t last);
  RoutingStatistics& operator+=(const RoutingStatistics& other);
  // The losses' parts of the layers with rows here; shares complete over all layers.
  double balance_loss(BalanceScope scope) const;
  double z_loss() const;
  // dloss/dp_lte for every token of layer l, times coefficient: [E].
  std::vector<double> balance_gradient(BalanceScope scope, std::int64_t layer, double coefficient) const;
};

struct RouterSaved {
  Tensor input;          // [T,H] that the logits were made of (with jitter)
  Tensor experts;        // i32 [T,K]
  Tensor weights;        // [T,K]
  Tensor probabilities;  // [T,E]
  Tensor lse;            // [T]
  Tensor sums;           // [E]: probabilities, summed over the tokens
};

class Router {
 public:
  // `layer` numbers the MoE layers from 0: the row of the statistics and the name of the jitter's stream.
  Router(const ModelConfig& config, std::int64_t layer);
  // `runs`: which tokens the rows of x are, for the jitter.
  void forward(Context& context, const Tensor& w, const Tensor& x, std::span<const TokenRun> runs,
               const RouterTraining& training, RouterSaved& saved) const;
  // Sets the layer's row of `statistics`, from what forward() saved and the rows `counts` [E] that each expert gets.
  void count(Context& context, const RouterSaved& saved, std::span<const std::int64_t> counts,
             RoutingStatistics& statistics) const;
  // dx += , dw += from dweights [T,K] and the losses' gradients (statistics of all ranks, shares complete over all
  // layers).
  void backward(Context& context, const Tensor& w, const RouterSaved& saved, const RoutingStatistics& statistics,
                const RouterTraining& training, std::span<const TokenRun> runs, const Tensor& dweights,
                const Tensor& dx, const Tensor& dw) const;

 private:
  void jitter(Context& context, const Tensor& x, std::span<const TokenRun> runs, const RouterTraining& training,
              const Tensor& y) const;

  ModelConfig config_;
  std::int64_t layer_;
  RouterMode mode_;
};

}  // namespace dropcycle
