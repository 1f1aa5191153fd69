#include "dropcycle/layers/embedding.hpp"

#include "dropcycle/layers/tensor_parallel.hpp"

namespace dropcycle {

Part vocabulary_part(std::int64_t vocab_size, const Groups& groups) {
  Communicator& tp = groups[GroupKind::tp];
  if (tp.size() == 1) return {0, 0, vocab_size};
  const Part part = part_of(0, vocab_size, tp);
  if ((tp.size() - 1) * ((vocab_size + tp.size() - 1) / tp.size()) >= vocab_size) {
    fail(Status::usage, "model.vocab_size = {} leaves a rank of parallel.tensor = {} without a row: make it smaller",
         vocab_size, tp.size());
  }
  return part;
}

Tensor Embedding::local(Context& c, const Microbatch& batch) const {
  if (c.groups[GroupKind::tp].size() == 1) return batch.tokens;
  const auto* ids = batch.on_host().tokens.as<std::int32_t>();
  std::vector<std::int32_t> rows(ids, ids + batch.tokens_count());
  for (std::int32_t& id : rows) {
    const std::int64_t row = id - part_.first;
    id = row >= 0 && row < part_.count ? static_cast<std::int32_t>(row) : -1;
  }
  return upload(c.scratch, rows);
}

void Embedding::forward(Context& c, const Tensor& w, const Microbatch& batch, const Tensor& y) const {
  const ArenaScope scope(c.scratch);
  const Tensor rows = local(c, batch);
  scatter_sum(c, y, [&](const Tensor& all) { c.ops.embedding(rows, w, all); });
}

void Embedding::backward(Context& c, const Microbatch& batch, const Tensor& dy, const Tensor& dw) const {
  const ArenaScope scope(c.scratch);
  c.ops.embedding_backward(gather(c, dy), local(c, batch), dw);
}

}  // namespace dropcycle
