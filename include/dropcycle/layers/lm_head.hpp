// The language-model head with its loss, in blocks of rows: the T×V logits are never in memory as a whole.
//
//   logits = n W_headᵀ;  loss = -log softmax(logits)[target]
//
// Under tensor parallelism a rank holds the vocabulary's rows vocabulary_part() of W and so columns of the logits; the
// ranks exchange three numbers a row (Ops::cross_entropy_part).
#pragma once

#include "dropcycle/layers/embedding.hpp"

namespace dropcycle {

// Rows of a block. Few rows would read and write all of dw for little work: of a vocabulary of 100,000 a pass over dw
// moves as many bytes as 1,000 rows of logits.
constexpr std::int64_t kLogitsRows = 512;

class LmHead {
 public:
  LmHead(std::int64_t vocab_size, const Groups& groups, std::int64_t block_rows = kLogitsRows);

  // n [T_local,H]; losses [T] acc (=), the same on all ranks of tp: 0 where the target is negative.
  void forward(Context& context, const Tensor& w, const Tensor& n, const Tensor& targets, const Tensor& losses) const;
  // Forward and backward at once, so that no logits are kept: losses (=), dn = scale dΣloss/dn (=), dw +=.
  void forward_backward(Context& context, const Tensor& w, const Tensor& n, const Tensor& targets, double scale,
                        const Tensor& losses, const Tensor& dn, const Tensor& dw) const;
  // logits [n,V] (=) of a few rows n [n,H] that all ranks of tp hold.
  void logits(Context& context, const Tensor& w, const Tensor& n, const Tensor& logits) const;

 private:
  // losses and dlogits (unless empty) of a block of logits.
  void loss(Context& context, const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
            const Tensor& dlogits) const;

  Part part_;
  std::int64_t block_rows_;
};

}  // namespace dropcycle
