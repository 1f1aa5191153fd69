// The MoE layer of Mixtral with its norm: router, dispatcher, experts.
//
//   sum = x + delta;  n = rms_norm(sum);  delta'[t] = Σ_k g[t,k] SwiGLU_{e(t,k)}(n[t])            (the paper's Eq. 2)
//
// With two dispatch parts of T/2 tokens each (perhaps none), one part's rows travel while the other part's experts
// compute, in forward and in backward. A token's sums are the same; dw adds the parts one after the other.
#pragma once

#include <array>
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

// Tokens [first, first + count) of this rank's T, which are dispatched together.
struct DispatchedPart {
  std::int64_t first = 0, count = 0;
  DispatchPlan plan;
  ExpertsSaved experts;
  Tensor rows;  // [count K, H]: the experts' results, in sorted order
  Tensor of(const Tensor& tokens) const { return tokens.rows(first, count); }
};

struct MoeSaved {
  NormSaved norm;
  RouterSaved router;
  std::array<DispatchedPart, kDispatchParts> parts;  // the first context.dispatch_parts of them
  double load = 0;                                   // the rows of this rank's experts over an even router's, T K ETP
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
  // `statistics` of all ranks, with shares complete over all layers. Uses up what was saved.
  void backward(Context& context, const MoeParameters<Tensor>& w, const MoeParameters<Tensor>& dw,
                const Microbatch& batch, const RouterTraining& training, const RoutingStatistics& statistics,
                MoeSaved& saved, const Tensor& g) const;

 private:
  // Whether backward takes the rows to the experts once more instead of keeping them.
  bool sorts_again(const Context& context) const;
  ModelConfig config_;
  Router router_;
  Dispatcher dispatcher_;
  Experts experts_;
  bool partial_;  // whether the experts' results are parts of sums over etp
  std::int64_t first_expert_;
};

}  // namespace dropcycle
