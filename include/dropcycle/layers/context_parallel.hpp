// Context parallelism: the S places of every sequence are cut into 2 CP parts of P = S / (2 CP), and cp rank r holds
// parts r and 2 CP - 1 - r, so that all ranks see equally many keys under the causal mask. A rank's rows are
// [B, 2 P, ...], B sequences of its two parts; `whole` rows are [B, S, ...] in the order of the sequences.
//
// Attention gathers keys and values of whole sequences (all_gather forward, and once more in backward instead of
// keeping them; reduce_scatter of their gradients in acc). Beyond a rank's own rows that takes, while one layer runs,
// B S 2 Nkv D (2 compute + acc) bytes and no S×S or S×H of anything else.
#pragma once

#include <vector>

#include "dropcycle/layers/context.hpp"

namespace dropcycle {

// For each of the B*S whole rows: the row among all cp ranks' rows, rank after rank. i32, in `arena`.
Tensor rows_of_whole(Arena& arena, std::int64_t batch, std::int64_t whole_sequence, int ranks);
// The inverse permutation.
Tensor whole_of_rows(Arena& arena, std::int64_t batch, std::int64_t whole_sequence, int ranks);

// Whole rows [B S, W], in scratch, of which this rank holds x [B 2 P, W]. Any type. Collective over cp.
Tensor gather_sequences(Context& context, const Microbatch& batch, const Tensor& x);
// Its adjoint: this rank's rows [B 2 P, W], in scratch, of the sum over cp of dwhole [B S, W] (acc).
Tensor gather_sequences_backward(Context& context, const Microbatch& batch, const Tensor& dwhole);

// Attention of this rank's queries, T rows of `shape`, on the keys and values of their whole sequences; dqkv from dout
// (formulas: Ops::attention). Collective over cp; on one cp rank plain attention.
void sequence_attention(Context& context, const AttentionShape& shape, const Microbatch& batch, const Tensor& qkv,
                        const Tensor& out, const Tensor& lse);
void sequence_attention_backward(Context& context, const AttentionShape& shape, const Microbatch& batch,
                                 const Tensor& qkv, const Tensor& out, const Tensor& lse, const Tensor& dout,
                                 const Tensor& dqkv);

// Rows [row, row + count) are consecutive tokens of the run, from token `first_token` on.
struct TokenRun {
  std::int64_t row = 0, count = 0;
  std::uint64_t first_token = 0;
};
// What rows [first, first + count) of a microbatch are; `row` counts from `first`.
std::vector<TokenRun> token_runs(const Microbatch& batch, std::int64_t first, std::int64_t count);

}  // namespace dropcycle
