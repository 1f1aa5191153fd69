// Tensor parallelism with sequence parallelism (Shoeybi et al., 2019; Korthikanti et al., 2022).
//
// Weights are split over the ranks of tp, and so are the rows of a microbatch between the products: of its T rows the
// tp-th rank holds [tp T_local, (tp+1) T_local), T_local = T/TP. Products with a split weight see all rows:
//
//   column-parallel  y = gather(x) W_localᵀ    (W_local: rows of W)       dx = scatter_sum(dy W_local)
//   row-parallel     y = scatter_sum(x W_localᵀ)  (W_local: columns of W)    dx = gather(dy) W_local
//
// gather (all_gather of rows) and scatter_sum (reduce_scatter, in acc) are adjoint. With TP = 1 they are nothing.
#pragma once

#include "dropcycle/layers/context.hpp"

namespace dropcycle {

// [T_local, ...] to [T, ...], in scratch; x itself where TP = 1.
inline Tensor gather(Context& context, const Tensor& x) {
  Communicator& tp = context.groups[GroupKind::tp];
  if (tp.size() == 1) return x;
  Shape shape = x.shape;
  shape.set(0, x.shape[0] * tp.size());
  const Tensor all = context.scratch.tensor(x.dtype, shape);
  tp.all_gather(x, all);
  return all;
}

// out [T_local, N] (=) = this rank's rows of Σ over tp of the [T, N] that product(y) writes into y (acc; out itself
// where TP = 1).
template <class Product>
void scatter_sum(Context& context, const Tensor& out, Product product) {
  Communicator& tp = context.groups[GroupKind::tp];
  if (tp.size() == 1) return product(out);
  const ArenaScope scope(context.scratch);
  const Tensor partial = context.scratch.tensor(context.acc(), {out.shape[0] * tp.size(), out.shape[1]});
  product(partial);
  if (out.dtype == context.acc()) return tp.reduce_scatter(partial, out);
  const Tensor sum = context.scratch.tensor(context.acc(), out.shape);
  tp.reduce_scatter(partial, sum);
  context.ops.convert(sum, out);
}

}  // namespace dropcycle
