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
  T gate_up;  // [E_local, 2 F_local, H]: each expert's gate and up, adjacent in memory
  T down;     // [E_local, H, F_local]
};

struct ExpertsSaved {
  Tensor input;      // [M,H]; empty when it is sorted again
  Tensor gate_up;    // [M, 2 F_local]; backward makes it its gradient
  Tensor activated;  // [M, F_local]; empty when it is recomputed
};

class Experts {
 public:
  // A rank of etp holds F_local = F/ETP columns of each of its experts. Throws Error{usage} unless ETP divides F.
  Experts(const ModelConfig& config, const Groups& groups);
  std::int64_t width() const { return width_; }  // F_local
  // Appends gate, up and down of the experts [first, first + count) under `prefix` ("layers.3.moe.").
  void declare(const std::string& prefix, std::int64_t first, std::int64_t count,
               std::vector<ParameterSpec>& specs) const;
  // y [M,H] (=) from saved.input: with ETP > 1, in acc, this rank's part of a sum over etp. `under_way`, if any, is
  // tested between the products, so that it makes progress.
  void forward(Context& context, const ExpertParameters<Tensor>& w, std::span<const std::int64_t> offsets,
               ExpertsSaved& saved, const Tensor& y, Request* under_way) const;
  // dx [M,H] (=), dw +=; dx is as forward's y.
  void backward(Context& context, const ExpertParameters<Tensor>& w, const ExpertParameters<Tensor>& dw,
                std::span<const std::int64_t> offsets, const ExpertsSaved& saved, const Tensor& dy, const Tensor& dx,
                Request* under_way) const;

 private:
  ModelConfig config_;
  Part part_;
  std::int64_t width_;
};

}  // namespace dropcycle
