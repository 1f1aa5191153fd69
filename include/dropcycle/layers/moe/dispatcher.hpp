// The dispatcher: takes each token's row to its K experts, wherever they live, and brings the results back.
//
//   1. sort      rows (t, k) by expert, then by t                                    [T K, H]
//   2. exchange  rows to the rank that holds the expert (all-to-all over ep), then every rank of etp gets the rows of
//                all of them (all-gather)                                            [M, H], by source rank
//   3. group     by local expert, then by source rank                               [M, H]
//      ... experts, each rank of etp its columns ...
//   3'. ungroup, 2'. sum over etp (reduce-scatter) and exchange back, 1'. combine: y[t] = Σ_k weights[t,k] z[t,k]
//
// Dropless: every row arrives. A rank, or an expert, may get no row; it takes part in every exchange all the same.
// Adjoints: gather / scatter-sum, all-to-all / all-to-all with the counts exchanged, all-gather / reduce-scatter.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context.hpp"

namespace dropcycle {

// Where every row goes; all memory lies in the saved arena.
struct DispatchPlan {
  Tensor token_of_row;                                  // i32 [T K]: the token whose copy is row i after step 1
  Tensor slots;                                         // i32 [T,K]: the row of (t, k) after step 1
  std::span<std::int64_t> send, receive;                // [EP]: rows to and from each rank
  std::span<std::int64_t> gathered;                     // [ETP]: rows that each rank of etp received
  Tensor group_index, ungroup_index;                    // i32 [M]; empty when EP = ETP = 1
  std::span<std::int64_t> offsets;                      // [E_local + 1]: rows of each local expert after step 3
  std::int64_t rows() const { return offsets.back(); }  // M
};

class Dispatcher {
 public:
  // Throws Error{usage} unless experts % EP == 0.
  Dispatcher(const ModelConfig& config, const Groups& groups);
  std::int64_t local_experts() const { return local_experts_; }
  // Whether this rank holds all experts whole, so that rows stay where they are.
  bool alone() const { return sources_ == 1; }

  // From experts i32 [T,K]; exchanges the row counts over ep and etp.
  DispatchPlan plan(Context& context, const Tensor& experts) const;
  // Steps 1 to 3: x [T,H] to grouped rows [M,H], in `arena` (saved or scratch).
  Tensor dispatch(Context& context, const DispatchPlan& plan, const Tensor& x, Arena& arena) const;
  // Steps 3' and 2': grouped rows [M,H] (in acc where ETP > 1) back to rows [T K, H] in the order of step 1, in
  // `arena`.
  Tensor collect(Context& context, const DispatchPlan& plan, const Tensor& grouped, Arena& arena) const;
  // Adjoint of dispatch: dx [T,H] (=) from the gradient of the grouped rows.
  void dispatch_backward(Context& context, const DispatchPlan& plan, const Tensor& dgrouped, const Tensor& dx) const;
  // Adjoint of collect: the gradient of the grouped rows, in scratch, from that of the rows.
  Tensor collect_backward(Context& context, const DispatchPlan& plan, const Tensor& drows) const;

 private:
  // Rows [T K, H] to grouped rows [M, H] (steps 2 and 3).
  Tensor to_experts(Context& context, const DispatchPlan& plan, const Tensor& rows, Arena& arena) const;
  // counts[s, e]: rows that come from source s for local expert e.
  void group_received(Context& context, std::span<const std::int64_t> counts, DispatchPlan& plan) const;

  std::int64_t experts_, ranks_, local_experts_, sources_;  // sources: EP ETP
};

}  // namespace dropcycle
