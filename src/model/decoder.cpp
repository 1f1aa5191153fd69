#include "dropcycle/model/decoder.hpp"

namespace dropcycle {

Decoder::Decoder(Model& model, std::int64_t capacity) : model_(model), capacity_(capacity) {
  const ModelConfig& c = model.config();
  for (std::int64_t l = 0; l < c.layers; ++l) {
    keys_.emplace_back(model.compute_, Shape{capacity, c.kv_heads * c.head_size});
    values_.emplace_back(model.compute_, Shape{capacity, c.kv_heads * c.head_size});
  }
}

std::vector<float> Decoder::append(std::span<const std::int32_t> tokens) {
  const auto news = static_cast<std::int64_t>(tokens.size());
  if (length_ + news > capacity_) {
    fail(Status::usage, "a sequence of {} tokens: the cache has room for {}", length_ + news, capacity_);
  }
  Model& m = model_;
  Context c = m.start(Recompute::none);
  const ModelConfig& config = m.config();
  const Tensor ids = m.saved_.tensor(DType::i32, {news}), positions = m.saved_.tensor(DType::i32, {news});
  for (std::int64_t t = 0; t < news; ++t) {
    ids.as<std::int32_t>()[t] = tokens[static_cast<std::size_t>(t)];
    positions.as<std::int32_t>()[t] = static_cast<std::int32_t>(length_ + t);
  }
  const Tensor delta = m.saved_.tensor(m.compute_, {news, config.hidden_size});
  Stream stream{m.saved_.tensor(m.compute_, {news, config.hidden_size}), {}};
  m.ops_.embedding(ids, m.weights_.embedding, stream.x);
  RoutingStatistics routing(config.layers, config.experts);
  const Microbatch batch{.batch = 1, .sequence = news, .tokens = ids, .positions = positions};
  for (std::size_t l = 0; l < m.attention_.size(); ++l) {
    const LayerParameters<Tensor>& w = m.weights_.layers[l];
    stream = m.attention_[l].forward_cached(c, w.attention, positions, stream, delta, keys_[l], values_[l], length_);
    Model::LayerSaved saved;
    stream = config.is_moe() ? m.moe_[l].forward(c, w.moe, batch, {}, stream, delta, saved.moe, routing)
                             : m.mlp_[l].forward(c, w.mlp, stream, delta, saved.mlp);
  }
  NormSaved norm;
  const Tensor normed = norm_forward(c, stream, m.weights_.final_norm, config.norm_epsilon, norm);
  const Tensor logits = m.saved_.tensor(c.acc(), {1, config.vocab_size});
  m.head_.logits(c, m.weights_.head, normed.rows(news - 1, 1), logits);
  length_ += news;
  std::vector<float> result(static_cast<std::size_t>(config.vocab_size));
  m.ops_.convert(logits.reshaped({config.vocab_size}), Tensor(result.data(), {config.vocab_size}));
  return result;
}

}  // namespace dropcycle
