#include "dropcycle/model/decoder.hpp"

#include <numeric>

#include "dropcycle/layers/tensor_parallel.hpp"

namespace dropcycle {

Decoder::Decoder(Model& model, std::int64_t capacity) : model_(model), capacity_(capacity) {
  const ModelConfig& c = model.config();
  if (const int ranks = model.groups_[GroupKind::cp].size(); ranks > 1) {
    fail(Status::usage, "parallel.context = {}: a sequence that grows token by token isn't cut: set it to 1", ranks);
  }
  if (c.attention_window > 0 && capacity > c.attention_window) {
    fail(Status::usage,
         "a sequence of {} tokens, prompt and new ones, expected at most model.attention_window ({}): sliding windows "
         "shorter than the sequence aren't supported",
         capacity, c.attention_window);
  }
  model.wait_for_weights({});
  keys_.resize(static_cast<std::size_t>(c.layers));
  values_.resize(keys_.size());
  for (const Chunk& chunk : model.chunks_) {
    for (auto l = static_cast<std::size_t>(chunk.first); l < static_cast<std::size_t>(chunk.last); ++l) {
      const Shape shape{capacity + model.groups_[GroupKind::tp].size() - 1,
                        model.attention_[l].kv_heads() * c.head_size};
      keys_[l] = OwnedTensor(model.compute_, shape, model.ops_.device());
      values_[l] = OwnedTensor(model.compute_, shape, model.ops_.device());
    }
  }
}

std::int64_t Decoder::padding(std::int64_t news) const {
  const std::int64_t ranks = model_.groups_[GroupKind::tp].size();
  return (ranks - news % ranks) % ranks;
}

std::vector<float> Decoder::append(std::span<const std::int32_t> tokens) {
  const auto news = static_cast<std::int64_t>(tokens.size());
  if (length_ + news > capacity_) {
    fail(Status::usage, "a sequence of {} tokens: the cache has room for {}", length_ + news, capacity_);
  }
  Model& m = model_;
  const ModelConfig& config = m.config();
  std::vector<std::int32_t> ids(tokens.begin(), tokens.end());
  ids.resize(ids.size() + static_cast<std::size_t>(padding(news)));
  std::vector<std::int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(length_));
  const Shape shape{std::ssize(ids)};
  const Microbatch host{.batch = 1,
                        .sequence = shape[0],
                        .tokens = Tensor(ids.data(), shape),
                        .positions = Tensor(positions.data(), shape)};
  std::vector<float> result(static_cast<std::size_t>(config.vocab_size));
  for (const Chunk& chunk : m.chunks_) {
    Model::Alive& state = m.acquire(0, 0, 1);
    Context c = m.context(state, Recompute::none);
    const Microbatch batch = upload(c.saved, host);
    Stream stream = m.chunk_input(c, chunk, batch, state, {});
    const Tensor delta = c.saved.tensor(c.acc(), stream.x.shape);
    for (auto l = static_cast<std::size_t>(chunk.first); l < static_cast<std::size_t>(chunk.last); ++l) {
      const LayerParameters<Tensor>& w = m.weights_.layers[l];
      stream =
          m.attention_[l].forward_cached(c, w.attention, batch.positions, stream, delta, keys_[l], values_[l], length_);
      Model::LayerSaved saved;
      stream = config.is_moe() ? m.moe_[l].forward(c, w.moe, batch, {}, stream, delta, saved.moe, state.routing)
                               : m.mlp_[l].forward(c, w.mlp, stream, delta, saved.mlp);
    }
    m.chunk_output(c, chunk, stream, state, {});
    if (chunk.ends) {
      const Tensor logits = c.saved.tensor(c.acc(), {1, config.vocab_size});
      m.head_.logits(c, m.weights_.head, gather(c, state.normed).rows(news - 1, 1), logits);
      const Tensor floats = c.saved.tensor(DType::f32, {config.vocab_size});
      m.ops_.convert(logits.reshaped({config.vocab_size}), floats);
      m.ops_.device().download(result.data(), floats.data, floats.bytes());
    }
    m.release(state);
  }
  length_ += news;
  // The last stage has the logits.
  m.stages().broadcast(result.data(), config.vocab_size * static_cast<std::int64_t>(sizeof(float)),
                       m.stages().size() - 1);
  return result;
}

}  // namespace dropcycle
