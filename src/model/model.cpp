#include "dropcycle/model/model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace dropcycle {
namespace {

std::string prefix_of(std::size_t layer) { return fmt::format("layers.{}.", layer); }

double element(const Tensor& x, std::int64_t i) {
  return x.dtype == DType::f64 ? x.as<double>()[i] : static_cast<double>(x.as<float>()[i]);
}

bool is_finite(const Tensor& x) {
  switch (x.dtype) {
    case DType::f64:
      return std::all_of(x.as<double>(), x.as<double>() + x.elements(), [](double v) { return std::isfinite(v); });
    case DType::f32:
      return std::all_of(x.as<float>(), x.as<float>() + x.elements(), [](float v) { return std::isfinite(v); });
    case DType::bf16:
      return std::all_of(x.as<BF16>(), x.as<BF16>() + x.elements(),
                         [](BF16 v) { return std::isfinite(static_cast<float>(v)); });
    case DType::f16:
      return std::all_of(x.as<F16>(), x.as<F16>() + x.elements(),
                         [](F16 v) { return std::isfinite(static_cast<float>(v)); });
    case DType::i32:
      return true;
  }
  return false;
}

}  // namespace

std::vector<ParameterSpec> Model::declare(const ModelConfig& config, const Groups& groups) {
  std::vector<ParameterSpec> specs;
  specs.push_back({.name = "embedding", .shape = {config.vocab_size, config.hidden_size}, .role = Role::embedding});
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const std::string prefix = prefix_of(static_cast<std::size_t>(l));
    AttentionLayer(config).declare(prefix, specs);
    if (config.is_moe()) {
      MoeLayer(config, l, groups).declare(prefix, specs);
    } else {
      MlpLayer(config).declare(prefix, specs);
    }
  }
  specs.push_back({.name = "final_norm", .shape = {config.hidden_size}, .initial = Initial::ones, .role = Role::norm});
  if (!config.tie_embeddings) {
    specs.push_back({.name = "head", .shape = {config.vocab_size, config.hidden_size}, .role = Role::embedding});
  }
  return specs;
}

template <class Get>
ModelParameters<Tensor> Model::bind(Get get) const {
  const ModelConfig& c = config_;
  const std::int64_t hidden = c.hidden_size, width = c.intermediate_size;
  const std::int64_t q = c.heads * c.head_size, kv = c.kv_heads * c.head_size;
  const std::int64_t ranks = groups_[GroupKind::ep].size(), local = c.experts / ranks;
  const std::int64_t first_expert = groups_[GroupKind::ep].rank() * local;
  ModelParameters<Tensor> all;
  all.embedding = get("embedding", Shape{c.vocab_size, hidden});
  for (std::size_t l = 0; l < static_cast<std::size_t>(c.layers); ++l) {
    const std::string prefix = prefix_of(l);
    LayerParameters<Tensor> layer;
    layer.attention = {get(prefix + "attention_norm", Shape{hidden}),
                       get(prefix + "attention.query", Shape{q + 2 * kv, hidden}),
                       get(prefix + "attention.output", Shape{hidden, q})};
    const Tensor norm = get(prefix + "mlp_norm", Shape{hidden});
    if (c.is_moe()) {
      const std::string expert = fmt::format("{}moe.experts.{}.", prefix, first_expert);
      layer.moe = {
          norm,
          get(prefix + "moe.router", Shape{c.experts, hidden}),
          {get(expert + "gate", Shape{local, 2 * width, hidden}), get(expert + "down", Shape{local, hidden, width})}};
    } else {
      layer.mlp = {norm, get(prefix + "mlp.gate", Shape{2 * width, hidden}),
                   get(prefix + "mlp.down", Shape{hidden, width})};
    }
    all.layers.push_back(layer);
  }
  all.final_norm = get("final_norm", Shape{hidden});
  all.head = c.tie_embeddings ? all.embedding : get("head", Shape{c.vocab_size, hidden});
  return all;
}

Model::Model(const ModelConfig& config, const Groups& groups, Ops& ops, DType compute)
    : config_(config),
      groups_(groups),
      ops_(ops),
      compute_(compute),
      head_(config.vocab_size),
      store_(declare(config, groups), compute) {
  for (std::int64_t l = 0; l < config.layers; ++l) {
    attention_.emplace_back(config);
    if (config.is_moe()) {
      moe_.emplace_back(config, l, groups);
    } else {
      mlp_.emplace_back(config);
    }
  }
  weights_ = bind([&](const std::string& name, const Shape& shape) { return store_.weight(name, shape); });
  gradients_ = bind([&](const std::string& name, const Shape& shape) { return store_.gradient(name, shape); });
}

void Model::weights_changed() {
  for (const GradientGroup group : kGradientGroups) {
    if (store_.weights(group)) ops_.convert(store_.masters(group), store_.weights(group));
  }
  store_.advance_version();
}

Context Model::start(Recompute recompute) {
  saved_.reset();
  scratch_.reset();
  recompute_.reset();
  return {ops_, groups_, saved_, scratch_, compute_, store_.version(), recompute};
}

Stream Model::layer_forward(Context& c, std::size_t l, const Microbatch& batch, const RouterTraining& training,
                            const Stream& in, const Tensor& delta, LayerSaved& saved, RoutingStatistics& routing,
                            const Look& look) {
  const LayerParameters<Tensor>& w = weights_.layers[l];
  const Stream middle = attention_[l].forward(c, w.attention, batch, in, delta, saved.attention);
  if (look) look(prefix_of(l) + "attention", delta);
  const Stream out = config_.is_moe() ? moe_[l].forward(c, w.moe, batch, training, middle, delta, saved.moe, routing)
                                      : mlp_[l].forward(c, w.mlp, middle, delta, saved.mlp);
  if (look) look(prefix_of(l) + (config_.is_moe() ? "moe" : "mlp"), delta);
  return out;
}

Model::Forward Model::forward(Context& c, const Microbatch& batch, const RouterTraining& training, const Look& look) {
  const Shape shape{batch.tokens_count(), config_.hidden_size};
  Forward state;
  state.layers.resize(attention_.size());
  if (config_.is_moe()) state.routing = RoutingStatistics(config_.layers, config_.experts);
  const Tensor delta = saved_.tensor(compute_, shape);
  Stream stream{saved_.tensor(compute_, shape), {}};
  ops_.embedding(batch.tokens, weights_.embedding, stream.x);
  if (look) look("embedding", stream.x);
  for (std::size_t l = 0; l < attention_.size(); ++l) {
    LayerSaved& saved = state.layers[l];
    if (c.recompute != Recompute::full) {
      stream = layer_forward(c, l, batch, training, stream, delta, saved, state.routing, look);
      continue;
    }
    saved.input = stream.x;
    const ArenaScope scope(recompute_);
    Context inner{ops_, groups_, recompute_, scratch_, compute_, c.version, Recompute::none};
    LayerSaved dropped;
    const Stream out = layer_forward(inner, l, batch, training, stream, delta, dropped, state.routing, look);
    stream = {saved_.tensor(compute_, shape), {}};
    ops_.add(out.x, out.delta, stream.x);
  }
  state.sum = stream.delta ? saved_.tensor(compute_, shape) : stream.x;
  state.inv_rms = saved_.tensor(c.acc(), {shape[0]});
  state.normed = saved_.tensor(compute_, shape);
  ops_.add_rms_norm(stream.x, stream.delta, weights_.final_norm, config_.norm_epsilon,
                    stream.delta ? state.sum : Tensor(), state.normed, state.inv_rms);
  if (look) look("final_norm", state.normed);
  return state;
}

void Model::layer_backward(Context& c, std::size_t l, const Microbatch& batch, const RouterTraining& training,
                           Forward& state, const Tensor& g) {
  const LayerParameters<Tensor>&w = weights_.layers[l], &dw = gradients_.layers[l];
  LayerSaved& saved = state.layers[l];
  const ArenaScope scope(recompute_);
  if (c.recompute == Recompute::full) {
    Context inner{ops_, groups_, recompute_, scratch_, compute_, c.version, Recompute::none};
    const Tensor delta = recompute_.tensor(compute_, g.shape);
    layer_forward(inner, l, batch, training, {saved.input, {}}, delta, saved, state.routing);
  }
  if (config_.is_moe()) {
    moe_[l].backward(c, w.moe, dw.moe, batch, training, state.routing, saved.moe, g);
  } else {
    mlp_[l].backward(c, w.mlp, dw.mlp, saved.mlp, g);
  }
  attention_[l].backward(c, w.attention, dw.attention, batch, saved.attention, g);
}

void Model::report_ready(const std::string& prefix, const GradientsReady& ready) const {
  if (!ready) return;
  for (const GradientGroup group : kGradientGroups) {
    const FlatRange range = store_.range_of(prefix, group);
    if (range.last > range.first) ready(range);
  }
}

MicrobatchLosses Model::summarise(const Microbatch& batch, const Tensor& losses, BalanceScope scope,
                                  Forward& state) const {
  MicrobatchLosses result;
  const auto* targets = batch.targets.as<std::int32_t>();
  for (std::int64_t t = 0; t < batch.tokens_count(); ++t) {
    if (targets[t] < 0) continue;
    result.language += element(losses, t);
    ++result.tokens;
  }
  if (config_.is_moe()) {
    result.balance = state.routing.balance_loss(scope, batch.tokens_count());
    result.z = state.routing.z_loss(batch.tokens_count());
  }
  result.routing = std::move(state.routing);
  return result;
}

MicrobatchLosses Model::forward_backward(const Microbatch& batch, const MicrobatchTraining& training,
                                         const GradientsReady& ready) {
  Context c = start(training.recompute);
  const Shape shape{batch.tokens_count(), config_.hidden_size};
  Forward state = forward(c, batch, training.router);
  // Head: loss and its gradient, block by block.
  const Tensor losses = saved_.tensor(c.acc(), {shape[0]});
  const Tensor dnormed = saved_.tensor(compute_, shape), g = saved_.tensor(compute_, shape);
  head_.forward_backward(c, weights_.head, state.normed, batch.targets, training.token_scale, losses, dnormed,
                         gradients_.head);
  ops_.rms_norm_backward(dnormed, state.sum, weights_.final_norm, state.inv_rms, {}, g, gradients_.final_norm);
  report_ready("final_norm", ready);
  if (!config_.tie_embeddings) report_ready("head", ready);
  for (std::size_t l = attention_.size(); l-- > 0;) {
    layer_backward(c, l, batch, training.router, state, g);
    report_ready(prefix_of(l), ready);
  }
  ops_.embedding_backward(g, batch.tokens, gradients_.embedding);
  report_ready("embedding", ready);
  return summarise(batch, losses, training.router.scope, state);
}

MicrobatchLosses Model::evaluate(const Microbatch& batch, const Tensor& losses) {
  Context c = start(Recompute::full);  // keeps nothing but each layer's input
  Forward state = forward(c, batch, {});
  const Tensor out = losses ? losses : saved_.tensor(c.acc(), {batch.tokens_count()});
  head_.forward(c, weights_.head, state.normed, batch.targets, out);
  return summarise(batch, out, BalanceScope::all_layers, state);
}

std::string Model::first_non_finite(const Microbatch& batch) {
  Context c = start(Recompute::none);
  std::string found;
  const Forward state = forward(c, batch, {}, [&](const std::string& place, const Tensor& x) {
    if (found.empty() && !is_finite(x)) found = place;
  });
  if (!found.empty()) return found;
  const Tensor losses = saved_.tensor(c.acc(), {batch.tokens_count()});
  head_.forward(c, weights_.head, state.normed, batch.targets, losses);
  return is_finite(losses) ? "" : "head";
}

std::int64_t Model::peak_activation_bytes() const {
  return saved_.peak_bytes() + scratch_.peak_bytes() + recompute_.peak_bytes();
}

std::int64_t Model::system_allocations() const {
  return saved_.system_allocations() + scratch_.system_allocations() + recompute_.system_allocations();
}

}  // namespace dropcycle
