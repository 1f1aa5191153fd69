// The language-model head with its loss, in blocks of rows: the T×V logits are never in memory as a whole.
//
//   logits = n W_headᵀ;  loss = -log softmax(logits)[target]
#pragma once

#include "dropcycle/layers/context.hpp"

namespace dropcycle {

class LmHead {
 public:
  // Rows per block such that a block of logits has at most `block_elements` elements.
  explicit LmHead(std::int64_t vocab_size, std::int64_t block_elements = 16 << 20);

  // losses [T] acc (=): 0 where the target is negative.
  void forward(Context& context, const Tensor& w, const Tensor& n, const Tensor& targets, const Tensor& losses) const;
  // Forward and backward at once, so that no logits are kept: losses (=), dn = scale dΣloss/dn (=), dw +=.
  void forward_backward(Context& context, const Tensor& w, const Tensor& n, const Tensor& targets, double scale,
                        const Tensor& losses, const Tensor& dn, const Tensor& dw) const;
  // logits [n,V] of a few rows.
  void logits(Context& context, const Tensor& w, const Tensor& n, const Tensor& logits) const;

 private:
  std::int64_t vocab_size_, block_rows_;
};

}  // namespace dropcycle
