#include "dropcycle/layers/context_parallel.hpp"

namespace dropcycle {
namespace {

// Calls f(whole row, row among all ranks' rows).
template <class F>
void for_each_row(std::int64_t batch, std::int64_t whole_sequence, int ranks, F&& f) {
  const std::int64_t part_rows = whole_sequence / (2 * ranks);
  for (std::int64_t row = 0; row < batch * whole_sequence; ++row) {
    const std::int64_t sequence = row / whole_sequence, place = row % whole_sequence, part = place / part_rows;
    const bool second = part >= ranks;
    const std::int64_t rank = second ? 2 * ranks - 1 - part : part;
    const std::int64_t first = ((rank * batch + sequence) * 2 + (second ? 1 : 0)) * part_rows;
    f(row, static_cast<std::int32_t>(first + place % part_rows));
  }
}

}  // namespace

Tensor rows_of_whole(Arena& arena, std::int64_t batch, std::int64_t whole_sequence, int ranks) {
  std::vector<std::int32_t> index(static_cast<std::size_t>(batch * whole_sequence));
  for_each_row(batch, whole_sequence, ranks,
               [&](std::int64_t whole, std::int32_t row) { index[static_cast<std::size_t>(whole)] = row; });
  return upload(arena, index);
}

Tensor whole_of_rows(Arena& arena, std::int64_t batch, std::int64_t whole_sequence, int ranks) {
  std::vector<std::int32_t> index(static_cast<std::size_t>(batch * whole_sequence));
  for_each_row(batch, whole_sequence, ranks, [&](std::int64_t whole, std::int32_t row) {
    index[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(whole);
  });
  return upload(arena, index);
}

Tensor gather_sequences(Context& c, const Microbatch& batch, const Tensor& x) {
  Communicator& ranks = c.groups[GroupKind::cp];
  const Shape shape{batch.batch * batch.whole_sequence(), x.shape[1]};
  const Tensor whole = c.scratch.tensor(x.dtype, shape);
  const ArenaScope scope(c.scratch);
  const Tensor gathered = c.scratch.tensor(x.dtype, shape);
  ranks.all_gather(x, gathered);
  c.ops.gather_rows(gathered, rows_of_whole(c.scratch, batch.batch, batch.whole_sequence(), ranks.size()), whole);
  return whole;
}

Tensor gather_sequences_backward(Context& c, const Microbatch& batch, const Tensor& dwhole) {
  Communicator& ranks = c.groups[GroupKind::cp];
  const Tensor dx = c.scratch.tensor(dwhole.dtype, {batch.tokens_count(), dwhole.shape[1]});
  const ArenaScope scope(c.scratch);
  const Tensor drows = c.scratch.tensor(dwhole.dtype, dwhole.shape);
  c.ops.gather_rows(dwhole, whole_of_rows(c.scratch, batch.batch, batch.whole_sequence(), ranks.size()), drows);
  ranks.reduce_scatter(drows, dx);
  return dx;
}

namespace {

// `shape` with the keys of whole sequences.
AttentionShape on_whole_sequences(const AttentionShape& shape, const Microbatch& batch) {
  AttentionShape whole = shape;
  whole.keys = batch.whole_sequence();
  return whole;
}

// This rank's queries with the keys and values of whole sequences, gathered into scratch.
AttentionHeads gathered_heads(Context& c, const AttentionShape& shape, const Microbatch& batch, const Tensor& qkv) {
  const AttentionHeads own = packed_heads(shape, qkv);
  if (c.groups[GroupKind::cp].size() == 1) return own;
  const std::int64_t width = shape.kv_heads * shape.head_size;
  const Tensor kv = c.scratch.tensor(qkv.dtype, {shape.tokens(), 2 * width});
  c.ops.copy_columns(own.k, {kv, 0}, 2 * width);
  const Tensor whole = gather_sequences(c, batch, kv);
  return {own.q, {whole, 0}, {whole, width}};
}

}  // namespace

void sequence_attention(Context& c, const AttentionShape& shape, const Microbatch& batch, const Tensor& qkv,
                        const Tensor& out, const Tensor& lse) {
  const ArenaScope scope(c.scratch);
  // 1. Keys and values.
  const AttentionHeads x = gathered_heads(c, shape, batch, qkv);
  // 2. Attention.
  c.ops.attention(on_whole_sequences(shape, batch), x, {batch.first_key, batch.places}, out, lse);
}

void sequence_attention_backward(Context& c, const AttentionShape& shape, const Microbatch& batch, const Tensor& qkv,
                                 const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dqkv) {
  const ArenaScope scope(c.scratch);
  const AttentionHeads x = gathered_heads(c, shape, batch, qkv), dx = packed_heads(shape, dqkv);
  const AttentionShape whole = on_whole_sequences(shape, batch);
  const AttentionMask mask{batch.first_key, batch.places};
  // 2. Attention.
  if (c.groups[GroupKind::cp].size() == 1) return c.ops.attention_backward(whole, x, mask, out, lse, dout, dx);
  const std::int64_t width = shape.kv_heads * shape.head_size;
  const Tensor dkv = c.scratch.tensor(c.acc(), {shape.batch * whole.keys, 2 * width});
  c.ops.attention_backward(whole, x, mask, out, lse, dout, {dx.q, {dkv, 0}, {dkv, width}});
  // 1. Keys and values: every rank's queries add to their gradients.
  c.ops.copy_columns({gather_sequences_backward(c, batch, dkv), 0}, dx.k, 2 * width);
}

std::vector<TokenRun> token_runs(const Microbatch& batch, std::int64_t first, std::int64_t count) {
  if (!batch.places) return {{0, count, batch.first_token + static_cast<std::uint64_t>(first)}};
  std::vector<TokenRun> runs;
  const auto* places = batch.on_host().places.as<std::int32_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = first + i;
    const auto token =
        batch.first_token + static_cast<std::uint64_t>(row / batch.sequence * batch.whole_sequence() + places[row]);
    const bool goes_on =
        !runs.empty() && token == runs.back().first_token + static_cast<std::uint64_t>(runs.back().count);
    if (goes_on) {
      ++runs.back().count;
    } else {
      runs.push_back({i, 1, token});
    }
  }
  return runs;
}

}  // namespace dropcycle
