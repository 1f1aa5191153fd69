// The MoE layer of Mixtral with its norm: router, dispatcher, experts.
//
//   sum = x + delta;  n = rms_norm(sum);  delta'[t] = Σ_k g[t,k] SwiGLU_{e(t,k)}(n[t])            (the paper's Eq. 2)
#pragma once

#include <string>
#include <vector>

#include "dropcycle/layers/moe/dispatcher.hpp"
#include "dropcycle/layers/moe/experts.hpp"
#include "dropcycle/layers/moe/router.hpp"

namespace dropcycle {

template <class T>
struct MoeParameters {
  T norm;    // [H]
  T router;  // [E,H]
  ExpertParameters<T> experts;
};

struct MoeSaved {
  NormSaved norm;
  RouterSaved router;
  DispatchPlan plan;
  ExpertsSaved experts;
  Tensor rows;  // [T K, H]: the experts' results, in sorted order
};

class MoeLayer {
 public:
  MoeLayer(const ModelConfig& config, std::int64_t layer, const Groups& groups);
  const Experts& experts() const { return experts_; }
  // Appends norm, router and this rank's experts under `prefix`.
  void declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const;
  // As AttentionLayer's; the layer's row of `statistics` is set.
  Stream forward(Context& context, const MoeParameters<Tensor>& w, const Microbatch& batch,
                 const RouterTraining& training, const Stream& in, const Tensor& delta, MoeSaved& saved,
                 RoutingStatistics& statistics) const;
  // `statistics` of all ranks, with shares complete over all layers.
  void backward(Context& context, const MoeParameters<Tensor>& w, const MoeParameters<Tensor>& dw,
                const Microbatch& batch, const RouterTraining& training, const RoutingStatistics& statistics,
                const MoeSaved& saved, const Tensor& g) const;

 private:
  ModelConfig config_;
  Router router_;
  Dispatcher dispatcher_;
  Experts experts_;
  bool partial_;  // whether the experts' results are parts of sums over etp
  std::int64_t first_expert_;
};

}  // namespace dropcycle
