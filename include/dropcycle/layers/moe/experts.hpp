// The experts of one rank as grouped products: rows offsets[e] to offsets[e+1] go through expert e's SwiGLU (Eq. 1).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context.hpp"
#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {

template <class T>
struct ExpertParameters {
  T gate_up;  // [E_local, 2F, H]: each expert's gate and up, adjacent in memory
  T down;     // [E_local, H, F]
};

struct ExpertsSaved {
  Tensor input;      // [M,H]
  Tensor gate_up;    // [M,2F]
  Tensor activated;  // [M,F]; empty when it is recomputed
};

class Experts {
 public:
  explicit Experts(const ModelConfig& config) : config_(config) {}
  // Appends gate, up and down of the experts [first, first + count) under `prefix` ("layers.3.moe.").
  void declare(const std::string& prefix, std::int64_t first, std::int64_t count,
               std::vector<ParameterSpec>& specs) const;
  // y [M,H] (=) from saved.input.
  void forward(Context& context, const ExpertParameters<Tensor>& w, std::span<const std::int64_t> offsets,
               ExpertsSaved& saved, const Tensor& y) const;
  // dx [M,H] (=), dw +=.
  void backward(Context& context, const ExpertParameters<Tensor>& w, const ExpertParameters<Tensor>& dw,
                std::span<const std::int64_t> offsets, const ExpertsSaved& saved, const Tensor& dy,
                const Tensor& dx) const;

 private:
  ModelConfig config_;
};

}  // namespace dropcycle
