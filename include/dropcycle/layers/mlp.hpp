// The dense feed-forward layer with its norm.
//
//   sum = x + delta;  n = rms_norm(sum);  delta' = (silu(n W_gateᵀ) * (n W_upᵀ)) W_downᵀ          (the paper's Eq. 1)
#pragma once

#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context.hpp"
#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {

template <class T>
struct MlpParameters {
  T norm;     // [H]
  T gate_up;  // [2F, H]: gate and up, adjacent in memory
  T down;     // [H, F]
};

struct MlpSaved {
  NormSaved norm;
  Tensor gate_up;    // [T, 2F]
  Tensor activated;  // [T, F]; empty when it is recomputed
};

class MlpLayer {
 public:
  explicit MlpLayer(const ModelConfig& config) : config_(config) {}
  // Appends norm, gate, up and down under `prefix`.
  void declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const;
  // As AttentionLayer's.
  Stream forward(Context& context, const MlpParameters<Tensor>& w, const Stream& in, const Tensor& delta,
                 MlpSaved& saved) const;
  void backward(Context& context, const MlpParameters<Tensor>& w, const MlpParameters<Tensor>& dw,
                const MlpSaved& saved, const Tensor& g) const;

 private:
  ModelConfig config_;
};

}  // namespace dropcycle
