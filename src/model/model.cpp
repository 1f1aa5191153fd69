#include "dropcycle/model/model.hpp"

#include <fmt/format.h>

namespace dropcycle {
namespace {

std::string prefix_of(std::size_t layer) { return fmt::format("layers.{}.", layer); }

}  // namespace

std::vector<ParameterSpec> Model::declare(const ModelConfig& config, const Groups& groups,
                                          const PipelineOptions& pipeline) {
  std::vector<ParameterSpec> specs;
  const std::vector<Chunk> chunks = chunks_of(config, groups, pipeline);
  const bool begins = chunks.front().begins, ends = chunks.back().ends;
  const Shape vocabulary{config.vocab_size, config.hidden_size};
  const Part rows = vocabulary_part(config.vocab_size, groups);
  // The last stage's copy of tied embeddings belongs to the first stage.
  if (begins || (ends && config.tie_embeddings)) {
    specs.push_back({.name = "embedding", .shape = vocabulary, .role = Role::embedding, .part = rows, .owner = begins});
  }
  for (const Chunk& chunk : chunks) {
    for (std::int64_t l = chunk.first; l < chunk.last; ++l) {
      const std::string prefix = prefix_of(static_cast<std::size_t>(l));
      AttentionLayer(config, groups).declare(prefix, specs);
      if (config.is_moe()) {
        MoeLayer(config, l, groups).declare(prefix, specs);
      } else {
        MlpLayer(config, groups).declare(prefix, specs);
      }
    }
  }
  if (ends) {
    specs.push_back(
        {.name = "final_norm", .shape = {config.hidden_size}, .initial = Initial::ones, .role = Role::norm});
    if (!config.tie_embeddings) {
      specs.push_back({.name = "head", .shape = vocabulary, .role = Role::embedding, .part = rows});
    }
  }
  for (ParameterSpec& spec : specs) {
    if (spec.full_precision()) spec.group = GradientGroup::replicated;
  }
  return specs;
}

template <class Get>
ModelParameters<Tensor> Model::bind(Get get) const {
  const ModelConfig& c = config_;
  const std::int64_t hidden = c.hidden_size;
  const Shape vocabulary{vocabulary_part(c.vocab_size, groups_).count, hidden};
  const std::int64_t ranks = groups_[GroupKind::ep].size(), local = c.experts / ranks;
  const std::int64_t first_expert = groups_[GroupKind::ep].rank() * local;
  ModelParameters<Tensor> all;
  const bool begins = chunks_.front().begins, ends = chunks_.back().ends;
  if (begins || (ends && c.tie_embeddings)) all.embedding = get("embedding", vocabulary);
  all.layers.resize(static_cast<std::size_t>(c.layers));
  const auto bind_layer = [&](std::size_t l) {
    const std::string prefix = prefix_of(l);
    const std::int64_t q = attention_[l].heads() * c.head_size, kv = attention_[l].kv_heads() * c.head_size;
    LayerParameters<Tensor> layer;
    layer.attention = {get(prefix + "attention_norm", Shape{hidden}),
                       get(prefix + "attention.query", Shape{q + 2 * kv, hidden}),
                       get(prefix + "attention.output", Shape{hidden, q})};
    const Tensor norm = get(prefix + "mlp_norm", Shape{hidden});
    if (c.is_moe()) {
      const std::int64_t width = moe_[l].experts().width();
      const std::string expert = fmt::format("{}moe.experts.{}.", prefix, first_expert);
      layer.moe = {
          norm,
          get(prefix + "moe.router", Shape{c.experts, hidden}),
          {get(expert + "gate", Shape{local, 2 * width, hidden}), get(expert + "down", Shape{local, hidden, width})}};
    } else {
      const std::int64_t width = mlp_[l].width();
      layer.mlp = {norm, get(prefix + "mlp.gate", Shape{2 * width, hidden}),
                   get(prefix + "mlp.down", Shape{hidden, width})};
    }
    all.layers[l] = layer;
  };
  for (const Chunk& chunk : chunks_) {
    for (std::int64_t l = chunk.first; l < chunk.last; ++l) bind_layer(static_cast<std::size_t>(l));
  }
  if (!ends) return all;
  all.final_norm = get("final_norm", Shape{hidden});
  all.head = c.tie_embeddings ? all.embedding : get("head", vocabulary);
  return all;
}

namespace {

PerGroup<Replica> replicas(const Groups& groups) {
  return PerGroup<Replica>::of([&](GradientGroup group) {
    const Communicator& ranks = groups[replicas_of(group)];
    return Replica{ranks.rank(), ranks.size()};
  });
}

}  // namespace

Model::Model(const ModelConfig& config, const Groups& groups, Ops& ops, DType compute, const PipelineOptions& pipeline,
             const ShardOptions& shards)
    : config_(config),
      groups_(groups),
      ops_(ops),
      compute_(compute),
      pipeline_(pipeline),
      chunks_(chunks_of(config, groups, pipeline)),
      embedding_(config.vocab_size, groups),
      head_(config.vocab_size, groups),
      store_(declare(config, groups, pipeline), compute, replicas(groups), shards, ops.device()),
      scratch_(ops.device()),
      recompute_(ops.device()) {
  if (chunks_.size() == 1) {
    const Chunk& all = chunks_.front();
    gradient_memory_.emplace(store_, all, all.ends && config.tie_embeddings);
  }
  for (int i = 0; i < kGradientBuffers; ++i) travelling_.emplace_back(ops.device());
  for (std::int64_t l = 0; l < config.layers; ++l) {
    attention_.emplace_back(config, groups);
    if (config.is_moe()) {
      moe_.emplace_back(config, l, groups);
    } else {
      mlp_.emplace_back(config, groups);
    }
  }
  weights_ = bind([&](const std::string& name, const Shape& shape) { return store_.weight(name, shape); });
  gradients_ = bind([&](const std::string& name, const Shape& shape) { return store_.gradient(name, shape); });
}

void Model::weights_changed() {
  store_.split_masters(ops_);
  weights_updated();
  wait_for_weights({});
}

void Model::weights_updated() {
  store_.advance_version();
  if (!store_.shards().optimizer) return;
  for (const GradientGroup group : kGradientGroups) {
    Communicator& replicas = groups_[replicas_of(group)];
    if (replicas.size() == 1) continue;
    for (const Piece& bucket : store_.buckets(group)) {
      arriving_.push_back({{group, bucket.first, bucket.first + bucket.count},
                           replicas.start_all_gather(store_.weights(group).rows(bucket.first, bucket.count))});
    }
  }
}

void Model::wait_for_weights(const std::string& prefix) {
  if (arriving_.empty()) return;
  for (const GradientGroup group : kGradientGroups) {
    const FlatRange needed = store_.range_of(prefix, group);
    std::erase_if(arriving_, [&](ArrivingWeights& part) {
      const bool wanted = part.range.group == group && part.range.first < needed.last && needed.first < part.range.last;
      if (wanted) part.request->wait();
      return wanted;
    });
  }
}

void Model::repeat(Context& c, std::uint64_t part, const std::function<void()>& work) {
  if (groups_[GroupKind::tp].size() > 1 || groups_[GroupKind::cp].size() > 1) return work();  // they speak to others
  const ArenaMark mark(c.saved);
  ops_.repeat(reinterpret_cast<std::uintptr_t>(&c.saved) + part, [&] {
    mark.restore();
    work();
  });
}

Stream Model::layer_forward(Context& c, std::size_t l, const Microbatch& batch, const RouterTraining& training,
                            const Stream& in, const Tensor& delta, LayerSaved& saved, RoutingStatistics& routing,
                            const Look& look) {
  wait_for_weights(prefix_of(l));
  const LayerParameters<Tensor>& w = weights_.layers[l];
  Stream middle;
  repeat(c, 4 * l, [&] { middle = attention_[l].forward(c, w.attention, batch, in, delta, saved.attention); });
  if (look) look(prefix_of(l) + "attention", delta);
  Stream out;
  if (config_.is_moe()) {
    out = moe_[l].forward(c, w.moe, batch, training, middle, delta, saved.moe, routing);
  } else {
    repeat(c, 4 * l + 1, [&] { out = mlp_[l].forward(c, w.mlp, middle, delta, saved.mlp); });
  }
  if (look) look(prefix_of(l) + (config_.is_moe() ? "moe" : "mlp"), delta);
  most_layer_load_ = std::max(most_layer_load_, saved.moe.load);
  return out;
}

Stream Model::layers_forward(Context& c, const Chunk& chunk, const Microbatch& batch, const RouterTraining& training,
                             Stream stream, Alive& state, const Look& look) {
  const Tensor delta = c.saved.tensor(c.acc(), stream.x.shape);
  double load = 0;
  for (std::int64_t layer = chunk.first; layer < chunk.last; ++layer) {
    const auto l = static_cast<std::size_t>(layer);
    LayerSaved& saved = state.layers[l];
    if (state.borrows) gradient_memory_->lend(layer, c.saved, c.routed);
    if (c.recompute != Recompute::full) {
      stream = layer_forward(c, l, batch, training, stream, delta, saved, state.routing, look);
      load += saved.moe.load;
    } else {
      saved.input = stream.x;
      const ArenaScope scope(recompute_);
      Context inner{ops_,     groups_,   recompute_,      recompute_,      scratch_,
                    compute_, c.version, Recompute::none, c.dispatch_parts};
      LayerSaved dropped;
      const Stream out = layer_forward(inner, l, batch, training, stream, delta, dropped, state.routing, look);
      stream = {c.saved.tensor(c.acc(), delta.shape), {}};
      ops_.add(out.x, out.delta, stream.x);
    }
    progress();
  }
  state.most_load = std::max(state.most_load, load / static_cast<double>(chunk.last - chunk.first));
  return stream;
}

void Model::final_norm_forward(Context& c, const Stream& in, Alive& state) {
  wait_for_weights({});
  state.sum = in.delta ? c.saved.tensor(c.acc(), in.x.shape) : in.x;
  state.inv_rms = c.saved.tensor(c.acc(), {in.x.shape[0]});
  state.normed = c.saved.tensor(compute_, in.x.shape);
  ops_.add_rms_norm(in.x, in.delta, weights_.final_norm, config_.norm_epsilon, in.delta ? state.sum : Tensor(),
                    state.normed, state.inv_rms);
}

void Model::layer_backward(Context& c, std::size_t l, const Microbatch& batch, const RouterTraining& training,
                           Alive& state, const Tensor& g) {
  const LayerParameters<Tensor>&w = weights_.layers[l], &dw = gradients_.layers[l];
  LayerSaved& saved = state.layers[l];
  const ArenaScope scope(recompute_);
  if (c.recompute == Recompute::full) {
    Context inner{ops_,     groups_,   recompute_,      recompute_,      scratch_,
                  compute_, c.version, Recompute::none, c.dispatch_parts};
    const Tensor delta = recompute_.tensor(c.acc(), g.shape);
    RoutingStatistics known(state.routing.layers, state.routing.experts, g.shape[0]);  // summed over the ranks already
    layer_forward(inner, l, batch, training, {saved.input, {}}, delta, saved, known);
  }
  if (config_.is_moe()) {
    moe_[l].backward(c, w.moe, dw.moe, batch, training, state.routing, saved.moe, g);
  } else {
    repeat(c, 4 * l + 2, [&] { mlp_[l].backward(c, w.mlp, dw.mlp, saved.mlp, g); });
  }
  repeat(c, 4 * l + 3, [&] { attention_[l].backward(c, w.attention, dw.attention, batch, saved.attention, g); });
}

void Model::report_ready(const std::string& prefix, const GradientsReady& ready) const {
  if (!ready) return;
  for (const GradientGroup group : kGradientGroups) {
    const FlatRange range = store_.range_of(prefix, group);
    if (range.last > range.first) ready(range);
  }
}

}  // namespace dropcycle
