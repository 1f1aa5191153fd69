#include "dropcycle/layers/lm_head.hpp"

#include <algorithm>

namespace dropcycle {
namespace {

// Calls f(first, rows) for each block of rows.
template <class Function>
void for_each_block(std::int64_t rows, std::int64_t block, Function f) {
  for (std::int64_t first = 0; first < rows; first += block) f(first, std::min(block, rows - first));
}

}  // namespace

LmHead::LmHead(std::int64_t vocab_size, std::int64_t block_elements)
    : vocab_size_(vocab_size), block_rows_(std::max<std::int64_t>(1, block_elements / vocab_size)) {}

void LmHead::forward(Context& c, const Tensor& w, const Tensor& n, const Tensor& targets, const Tensor& losses) const {
  for_each_block(n.shape[0], block_rows_, [&](std::int64_t first, std::int64_t rows) {
    const ArenaScope scope(c.scratch);
    const Tensor block = c.scratch.tensor(c.acc(), {rows, vocab_size_});
    c.ops.linear(n.rows(first, rows), c.weight(w), block);
    c.ops.cross_entropy(block, targets.rows(first, rows), 0, losses.rows(first, rows), {});
  });
}

void LmHead::forward_backward(Context& c, const Tensor& w, const Tensor& n, const Tensor& targets, double scale,
                              const Tensor& losses, const Tensor& dn, const Tensor& dw) const {
  for_each_block(n.shape[0], block_rows_, [&](std::int64_t first, std::int64_t rows) {
    const ArenaScope scope(c.scratch);
    const Tensor block = c.scratch.tensor(c.acc(), {rows, vocab_size_});
    const Tensor dblock = c.scratch.tensor(c.compute, {rows, vocab_size_});
    const Tensor input = n.rows(first, rows);
    c.ops.linear(input, c.weight(w), block);
    c.ops.cross_entropy(block, targets.rows(first, rows), scale, losses.rows(first, rows), dblock);
    c.ops.linear_dx(dblock, c.weight(w), dn.rows(first, rows));
    c.ops.linear_dw(dblock, input, dw);
  });
}

void LmHead::logits(Context& c, const Tensor& w, const Tensor& n, const Tensor& logits) const {
  c.ops.linear(n, c.weight(w), logits);
}

}  // namespace dropcycle
