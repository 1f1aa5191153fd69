// The dense feed-forward layer with its norm.
//
//   sum = x + delta;  n = rms_norm(sum);  delta' = (silu(n W_gateᵀ) * (n W_upᵀ)) W_downᵀ          (the paper's Eq. 1)
//
// Tensor parallelism (tensor_parallel.hpp): W_gate and W_up are column-parallel, W_down row-parallel, F_local = F/TP.
#pragma once

#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context.hpp"
#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {

template <class T>
struct MlpParameters {
  T norm;     // [H]
  T gate_up;  // [2 F_local, H]: gate and up, adjacent in memory
  T down;     // [H, F_local]
};

struct MlpSaved {
  NormSaved norm;
  Tensor gate_up;    // [T, 2 F_local]; backward makes it its gradient
  Tensor activated;  // [T, F_local]; empty when it is recomputed
};

class MlpLayer {
 public:
  // Throws Error{usage} unless TP divides F.
  MlpLayer(const ModelConfig& config, const Groups& groups);
  std::int64_t width() const { return width_; }  // F_local
  // Appends norm, gate, up and down under `prefix`.
  void declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const;
  // As AttentionLayer's.
  Stream forward(Context& context, const MlpParameters<Tensor>& w, const Stream& in, const Tensor& delta,
                 MlpSaved& saved) const;
  void backward(Context& context, const MlpParameters<Tensor>& w, const MlpParameters<Tensor>& dw,
                const MlpSaved& saved, const Tensor& g) const;

 private:
  ModelConfig config_;
  Part part_;
  std::int64_t width_;
};

}  // namespace dropcycle
