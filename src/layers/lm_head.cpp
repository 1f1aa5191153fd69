#include "dropcycle/layers/lm_head.hpp"

#include <algorithm>

#include "dropcycle/layers/tensor_parallel.hpp"

namespace dropcycle {
namespace {

// Calls f(first, rows) for each block of rows.
template <class Function>
void for_each_block(std::int64_t rows, std::int64_t block, Function f) {
  for (std::int64_t first = 0; first < rows; first += block) f(first, std::min(block, rows - first));
}

}  // namespace

LmHead::LmHead(std::int64_t vocab_size, const Groups& groups, std::int64_t block_rows)
    : part_(vocabulary_part(vocab_size, groups)), block_rows_(block_rows) {}

void LmHead::loss(Context& c, const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                  const Tensor& dlogits) const {
  Communicator& tp = c.groups[GroupKind::tp];
  if (tp.size() == 1) return c.ops.cross_entropy(logits, targets, scale, losses, dlogits);
  const Tensor part = c.scratch.tensor(c.acc(), {logits.shape[0], 3});
  const Tensor parts = c.scratch.tensor(c.acc(), {tp.size(), logits.shape[0], 3});
  c.ops.cross_entropy_part(logits, targets, part_.first, part);
  tp.all_gather(part, parts);
  c.ops.cross_entropy_of_parts(parts, logits, targets, part_.first, scale, losses, dlogits);
}

void LmHead::forward(Context& c, const Tensor& w, const Tensor& n, const Tensor& targets, const Tensor& losses) const {
  const ArenaScope all(c.scratch);
  const Tensor input = gather(c, n);
  for_each_block(input.shape[0], block_rows_, [&](std::int64_t first, std::int64_t rows) {
    const ArenaScope scope(c.scratch);
    const Tensor block = c.scratch.tensor(c.acc(), {rows, part_.count});
    c.ops.linear(input.rows(first, rows), c.weight(w), block);
    loss(c, block, targets.rows(first, rows), 0, losses.rows(first, rows), {});
  });
}

void LmHead::forward_backward(Context& c, const Tensor& w, const Tensor& n, const Tensor& targets, double scale,
                              const Tensor& losses, const Tensor& dn, const Tensor& dw) const {
  const ArenaScope all(c.scratch);
  const Tensor input = gather(c, n);
  scatter_sum(c, dn, [&](const Tensor& dinput) {
    for_each_block(input.shape[0], block_rows_, [&](std::int64_t first, std::int64_t rows) {
      const ArenaScope scope(c.scratch);
      const Tensor block = c.scratch.tensor(c.acc(), {rows, part_.count});
      const Tensor dblock = c.scratch.tensor(c.compute, {rows, part_.count});
      c.ops.linear(input.rows(first, rows), c.weight(w), block);
      loss(c, block, targets.rows(first, rows), scale, losses.rows(first, rows), dblock);
      c.ops.linear_dx(dblock, c.weight(w), dinput.rows(first, rows));
      c.ops.linear_dw(dblock, input.rows(first, rows), dw);
    });
  });
}

void LmHead::logits(Context& c, const Tensor& w, const Tensor& n, const Tensor& logits) const {
  Communicator& tp = c.groups[GroupKind::tp];
  if (tp.size() == 1) return c.ops.linear(n, c.weight(w), logits);
  const ArenaScope scope(c.scratch);
  const Tensor part = c.scratch.tensor(logits.dtype, {n.shape[0], part_.count});
  c.ops.linear(n, c.weight(w), part);
  c.ops.fill_zero(logits);
  c.ops.copy_columns({part, 0}, {logits, part_.first}, part_.count);
  tp.all_reduce(logits);  // the other ranks' columns are zero here
}

}  // namespace dropcycle
