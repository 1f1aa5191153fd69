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
#include <memory>
#include <span>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context.hpp"

namespace dropcycle {

// Where every row goes; the tensors lie in the saved and routed arenas.
struct DispatchPlan {
  Tensor token_of_row;                                  // i32 [T K]: the token whose copy is row i after step 1
  Tensor slots;                                         // i32 [T,K]: the row of (t, k) after step 1
  std::vector<std::int64_t> counts;                     // [E]: this rank's rows for each expert
  std::vector<std::int64_t> send, receive;              // [EP]: rows to and from each rank
  std::vector<std::int64_t> gathered;                   // [ETP]: rows that each rank of etp received
  Tensor group_index, ungroup_index;                    // i32 [M]; empty when EP = ETP = 1
  std::vector<std::int64_t> offsets;                    // [E_local + 1]: rows of each local expert after step 3
  std::int64_t rows() const { return offsets.back(); }  // M
};

// Rows on their way between ranks, or where they are already.
struct TravellingRows {
  Tensor rows;
  std::unique_ptr<Request> request;  // empty: they are there
  // The rows, once they are there.
  const Tensor& arrived() const {
    if (request) request->wait();
    return rows;
  }
};

class Dispatcher {
 public:
  // Throws Error{usage} unless experts % EP == 0.
  Dispatcher(const ModelConfig& config, const Groups& groups);
  std::int64_t local_experts() const { return local_experts_; }
  // Whether this rank holds all experts whole, so that rows stay where they are.
  bool alone() const { return sources_ == 1; }

  // From experts i32 [T,K]; exchanges the row counts over ep and etp. The host waits for the counts: nothing is
  // dropped, so they are the sizes of all that follows.
  DispatchPlan plan(Context& context, const Tensor& experts) const;
  // Step 1: x [T,H] to rows [T K, H], in `arena`; alone they are what the experts get.
  Tensor sort(Context& context, const DispatchPlan& plan, const Tensor& x, Arena& arena) const;
  // Step 2 begins: rows [T K, H] leave for the ranks of ep. Adjoint: send_back, as far as arrived().
  TravellingRows send(Context& context, const DispatchPlan& plan, const Tensor& rows) const;
  // Steps 2 and 3 end: grouped rows [M,H] of what was sent, in `arena` (routed or scratch).
  Tensor receive(Context& context, const DispatchPlan& plan, const TravellingRows& sent, Arena& arena) const;
  // Step 3', and 2' begins: grouped rows [M,H] (in acc where ETP > 1) leave for their owners, where they arrive as rows
  // [T K, H] in the order of step 1, in `arena`. Adjoint: send and receive.
  TravellingRows send_back(Context& context, const DispatchPlan& plan, const Tensor& grouped, Arena& arena) const;

 private:
  // Between the ranks of ep; empty where it is over.
  std::unique_ptr<Request> exchange(Context& context, const Tensor& x, std::span<const std::int64_t> send,
                                    const Tensor& out, std::span<const std::int64_t> receive) const;
  // counts[s, e]: rows that come from source s for local expert e.
  void group_received(Context& context, std::span<const std::int64_t> counts, DispatchPlan& plan) const;

  std::int64_t experts_, ranks_, local_experts_, sources_;  // sources: EP ETP
};

}  // namespace dropcycle
