// Token embedding. Under tensor parallelism a rank holds the vocabulary's rows part_of(0, V, tp); tokens of other ranks
// give zero rows, and the sum over the ranks puts each row where sequence parallelism wants it.
//
//   y[t] = W[tokens[t]]
#pragma once

#include "dropcycle/layers/context.hpp"
#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {

// The rows of embedding and head that a rank holds: {first, count} with count = V where TP = 1. Throws Error{usage}
// where a rank would hold none.
Part vocabulary_part(std::int64_t vocab_size, const Groups& groups);

class Embedding {
 public:
  Embedding(std::int64_t vocab_size, const Groups& groups) : part_(vocabulary_part(vocab_size, groups)) {}
  // y [T_local,H] acc (=).
  void forward(Context& context, const Tensor& w, const Microbatch& batch, const Tensor& y) const;
  // dy [T_local,H] acc; dw +=.
  void backward(Context& context, const Microbatch& batch, const Tensor& dy, const Tensor& dw) const;

 private:
  // Indices into this rank's rows, -1 for the others' tokens.
  Tensor local(Context& context, const Microbatch& batch) const;

  Part part_;
};

}  // namespace dropcycle
