// The microbatches of a step on one stage: what is alive, in which order, and what goes to the neighbours.
#include "dropcycle/model/pipeline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/profile.hpp"
#include "dropcycle/layers/tensor_parallel.hpp"
#include "dropcycle/model/model.hpp"

namespace dropcycle {
namespace {

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
    case DType::i16:
      return true;
  }
  return false;
}

double sum_of(const HostCopy& copy) {
  const Tensor& losses = copy.view();
  double sum = 0;
  for (std::int64_t t = 0; t < losses.elements(); ++t) sum += element(losses, t);
  return sum;
}

std::int64_t predicted_tokens(const Microbatch& batch) {
  const auto* targets = batch.on_host().targets.as<std::int32_t>();
  return std::count_if(targets, targets + batch.tokens_count(), [](std::int32_t target) { return target >= 0; });
}

void wait_for(std::vector<std::unique_ptr<Request>>& requests) {
  for (const auto& request : requests) request->wait();
  requests.clear();
}

}  // namespace

PipelineOptions pipeline_options(const Config& config) {
  const ParallelConfig& p = config.parallel;
  layers_of_chunks(config.model.layers, p.pipeline, p.virtual_stages, p.pipeline_layers);
  return {parse_pipeline_schedule(p.schedule), p.virtual_stages, p.pipeline_layers};
}

std::vector<Chunk> chunks_of(const ModelConfig& config, const Groups& groups, const PipelineOptions& options) {
  return chunks_of(config, groups[GroupKind::pp].size(), groups[GroupKind::pp].rank(), options);
}

std::vector<Chunk> chunks_of(const ModelConfig& config, int stages, int stage, const PipelineOptions& options) {
  const auto layers = layers_of_chunks(config.layers, stages, options.virtual_stages, options.layers);
  std::vector<Chunk> result;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (static_cast<int>(i) % stages == stage) {
      result.push_back({first, first + layers[i], i == 0, i + 1 == layers.size()});
    }
    first += layers[i];
  }
  return result;
}

Model::Alive& Model::acquire(std::int64_t microbatch, int chunk, std::int64_t promised) {
  auto free = std::ranges::find_if(alive_, [](const auto& state) { return !state->in_use; });
  if (free == alive_.end()) {
    require(std::ssize(alive_) < promised, "microbatch {} would be one too many alive at once: schedule {} promises {}",
            microbatch, name(pipeline_.schedule), promised);
    alive_.push_back(std::make_unique<Alive>(ops_.device()));
    free = alive_.end() - 1;
  }
  Alive& state = **free;
  wait_for(state.sent);
  state.reset();
  state.in_use = true;
  state.borrows = false;
  state.microbatch = microbatch;
  state.chunk = chunk;
  state.layers.assign(attention_.size(), {});
  state.routing = config_.is_moe() ? RoutingStatistics(config_.layers, config_.experts) : RoutingStatistics();
  return state;
}

Model::Alive& Model::find(std::int64_t microbatch, int chunk) {
  const auto found = std::ranges::find_if(alive_, [&](const auto& state) {
    return state->in_use && state->microbatch == microbatch && state->chunk == chunk;
  });
  require(found != alive_.end(), "backward of microbatch {}, chunk {} without forward", microbatch, chunk);
  return **found;
}

void Model::release(Alive& state) {
  state.in_use = false;
  if (state.sent.empty()) state.reset();  // merges its blocks within the first step
}

Model::TravellingGradient& Model::next_gradient() {
  TravellingGradient& gradient = travelling_[next_gradient_++ % kGradientBuffers];
  wait_for(gradient.sent);
  gradient.memory.reset();
  return gradient;
}

void Model::progress() {
  const auto test = [](const std::vector<std::unique_ptr<Request>>& sent) {
    for (const auto& request : sent) request->test();
  };
  for (const auto& state : alive_) test(state->sent);
  for (const TravellingGradient& gradient : travelling_) test(gradient.sent);
}

// Of an arena for rows whose number the router decides: alone, all experts' rows are always T K.
Arena& Model::routed(Alive& state) const {
  return groups_[GroupKind::ep].size() * groups_[GroupKind::etp].size() == 1 ? state.saved : state.routed;
}

void Model::clear_gradients() {
  const Span span(SpanKind::phase, "clear gradients");
  for (const GradientGroup group : kGradientGroups) ops_.fill_zero(store_.gradients(group));
}

Context Model::context(Alive& state, Recompute recompute) {
  scratch_.reset();
  recompute_.reset();
  return {ops_, groups_, state.saved, routed(state), scratch_, compute_, store_.version(), recompute};
}

std::vector<std::unique_ptr<Request>> Model::send(const Tensor& values, std::vector<double>& shares,
                                                  int direction) const {
  const int size = stages().size(), to = (stages().rank() + direction + size) % size;
  const Channel channel = direction > 0 ? Channel::forward : Channel::backward;
  std::vector<std::unique_ptr<Request>> requests;
  requests.push_back(stages().start_send(values, to, channel));
  if (!shares.empty()) requests.push_back(stages().start_send(std::span<const double>(shares), to, channel));
  return requests;
}

void Model::receive(const Tensor& values, std::vector<double>& shares, int direction) const {
  const int size = stages().size(), from = (stages().rank() + direction + size) % size;
  const Channel channel = direction > 0 ? Channel::backward : Channel::forward;
  std::vector<std::unique_ptr<Request>> requests;
  requests.push_back(stages().start_receive(values, from, channel));
  if (!shares.empty()) requests.push_back(stages().start_receive(std::span<double>(shares), from, channel));
  wait_for(requests);
}

std::int64_t Model::local_rows(const Microbatch& batch) const {
  const std::int64_t rows = batch.tokens_count();
  if (rows % groups_[GroupKind::tp].size() != 0) {
    fail(Status::usage, "a microbatch of {} tokens can't be shared by parallel.tensor = {} ranks", rows,
         groups_[GroupKind::tp].size());
  }
  return rows / groups_[GroupKind::tp].size();
}

Stream Model::chunk_input(Context& c, const Chunk& chunk, const Microbatch& batch, Alive& state, const Look& look) {
  const Stream in{c.saved.tensor(c.acc(), {local_rows(batch), config_.hidden_size}), {}};
  if (chunk.begins) {
    wait_for_weights("embedding");
    embedding_.forward(c, weights_.embedding, batch, in.x);
    if (look) look("embedding", in.x);
  } else {
    receive(in.x, state.routing.shares, -1);
  }
  return in;
}

void Model::chunk_output(Context& c, const Chunk& chunk, const Stream& out, Alive& state, const Look& look) {
  if (chunk.ends) {
    final_norm_forward(c, out, state);
    if (look) look("final_norm", state.normed);
    return;
  }
  state.output = out.delta ? out.delta : out.x;
  if (out.delta) ops_.add(out.x, out.delta, state.output);
  if (look) look(fmt::format("layers.{}", chunk.last - 1), state.output);
  state.sent = send(state.output, state.routing.shares, +1);
}

void Model::chunk_forward(Context& c, const Chunk& chunk, const Microbatch& host_batch, const RouterTraining& training,
                          Alive& state, const Look& look) {
  const Microbatch& batch = state.batch = upload(c.saved, host_batch);
  // 1. The embedding, or what the stage before sends.
  const Stream in = chunk_input(c, chunk, batch, state, look);
  if (look && !chunk.begins) look("", in.x);  // the stage before has named it
  // 2. Layers.
  const Stream out = layers_forward(c, chunk, batch, training, in, state, look);
  if (config_.is_moe()) {
    state.routing.tokens = local_rows(batch);
    state.routing.sum_over(groups_[GroupKind::sequence]);
    state.routing.add_shares(chunk.first, chunk.last);
  }
  // 3. The final norm, or on to the next stage.
  chunk_output(c, chunk, out, state, look);
}

void Model::chunk_backward(Context& c, const Chunk& chunk, const MicrobatchTraining& training, Alive& state,
                           MicrobatchLosses& sums, const GradientsReady& ready) {
  const Microbatch& batch = state.batch;
  if (state.borrows) {
    gradient_memory_->take_back(c.saved, c.routed);
    gradient_memory_->clear_rest(ops_);
  }
  std::optional<Span> span(std::in_place, SpanKind::phase, chunk.ends ? "head and loss" : "backward");
  wait_for(state.sent);  // received long ago, or this backward could not begin
  const Shape shape{local_rows(batch), config_.hidden_size};
  TravellingGradient* travelling = chunk.begins && chunk.ends ? nullptr : &next_gradient();
  const Tensor g = (travelling ? travelling->memory : c.saved).tensor(c.acc(), shape);
  // 3. Head and final norm, or what the next stage sends: the gradient, and the shares of all layers.
  if (chunk.ends) {
    const Tensor losses = c.saved.tensor(c.acc(), {batch.tokens_count()}), dnormed = c.saved.tensor(c.acc(), shape);
    head_.forward_backward(c, weights_.head, state.normed, batch.targets, training.token_scale, losses, dnormed,
                           gradients_.head);
    ops_.rms_norm_backward(dnormed, state.sum, weights_.final_norm, state.inv_rms, {}, g, gradients_.final_norm);
    report_ready("final_norm", ready);
    if (!config_.tie_embeddings) report_ready("head", ready);
    sums.language += sum_of({ops_.device(), losses});
  } else {
    receive(g, state.routing.shares, +1);
  }
  // 2. Layers.
  for (std::int64_t layer = chunk.last; layer-- > chunk.first;) {
    const auto l = static_cast<std::size_t>(layer);
    span.reset();
    if (state.borrows) gradient_memory_->clear_layer(ops_, layer);
    span.emplace(SpanKind::phase, "backward");
    layer_backward(c, l, batch, training.router, state, g);
    if (ready) attention_[l].sum_shared_heads(c, gradients_.layers[l].attention);
    report_ready(fmt::format("layers.{}.", layer), ready);
    progress();
  }
  // 1. The embedding, or back to the stage before.
  if (chunk.begins) {
    span.reset();
    if (state.borrows) gradient_memory_->clear_embedding(ops_);
    span.emplace(SpanKind::phase, "backward");
    embedding_.backward(c, batch, g, gradients_.embedding);
    if (!shares_embedding()) report_ready("embedding", ready);
  } else {
    travelling->shares = state.routing.shares;
    travelling->sent = send(g, travelling->shares, -1);
  }
  if (!config_.is_moe()) return;
  sums.balance += state.routing.balance_loss(training.router.scope);
  sums.z += state.routing.z_loss();
  sums.routing += state.routing;
}

MicrobatchLosses Model::no_losses() const {
  MicrobatchLosses losses;
  if (config_.is_moe()) losses.routing = RoutingStatistics(config_.layers, config_.experts);
  return losses;
}

MicrobatchLosses Model::forward_backward(std::span<const Microbatch> batches, const MicrobatchTraining& training,
                                         const GradientsReady& ready) {
  MicrobatchLosses sums = no_losses();
  for (const Microbatch& batch : batches) sums.tokens += predicted_tokens(batch);
  const int size = stages().size(), stage = stages().rank(), chunks = pipeline_.virtual_stages;
  const auto count = std::ssize(batches);
  const bool borrows = training.fresh_gradients && count == 1 && gradient_memory_;
  if (training.fresh_gradients && !borrows) clear_gradients();
  const std::int64_t promised = dropcycle::most_alive(pipeline_.schedule, size, count, chunks, stage);
  for (const PipelineStep& step : pipeline_steps(pipeline_.schedule, size, count, chunks, stage)) {
    const Chunk& chunk = chunks_[static_cast<std::size_t>(step.chunk)];
    const Microbatch& batch = batches[static_cast<std::size_t>(step.microbatch)];
    const bool forward = step.kind == PipelineStep::Kind::forward, last = step.microbatch + 1 == count;
    Alive& state = forward ? acquire(step.microbatch, step.chunk, promised) : find(step.microbatch, step.chunk);
    Context c = context(state, training.recompute);
    if (training.overlap_dispatch && groups_[GroupKind::ep].size() > 1) c.dispatch_parts = kDispatchParts;
    if (forward) {
      state.borrows = borrows;
      const Span span(SpanKind::phase, "forward");
      chunk_forward(c, chunk, batch, training.router, state);
    } else {
      chunk_backward(c, chunk, training, state, sums, last ? ready : GradientsReady());
      release(state);
    }
  }
  if (shares_embedding() && gradients_.embedding) {
    const Span span(SpanKind::phase, "gradient sums");
    groups_[GroupKind::embedding].all_reduce(gradients_.embedding);
    report_ready("embedding", ready);
  }
  return sums;
}

template <class Finish>
void Model::forward_only(const Microbatch& batch, Finish finish) {
  for (const Chunk& chunk : chunks_) {
    Alive& state = acquire(0, 0, 1);
    Context c = context(state, Recompute::full);  // keeps nothing but each layer's input
    chunk_forward(c, chunk, batch, {}, state);
    finish(c, chunk, state);
    release(state);
  }
}

MicrobatchLosses Model::evaluate(const Microbatch& batch, const Tensor& losses) {
  MicrobatchLosses sums = no_losses();
  sums.tokens = predicted_tokens(batch);
  forward_only(batch, [&](Context& c, const Chunk& chunk, const Alive& state) {
    if (chunk.ends) {
      const Tensor found = c.saved.tensor(c.acc(), {batch.tokens_count()});
      head_.forward(c, weights_.head, state.normed, state.batch.targets, found);
      if (losses) ops_.device().download(losses.data, found.data, losses.bytes());
      sums.language += sum_of({ops_.device(), found});
    }
    if (config_.is_moe()) sums.routing += state.routing;
  });
  return sums;
}

void Model::logits(const Microbatch& batch, const Tensor& logits) {
  forward_only(batch, [&](Context& c, const Chunk& chunk, const Alive& state) {
    if (!chunk.ends) return;
    const Tensor found = c.saved.tensor(logits.dtype, logits.shape);
    head_.logits(c, weights_.head, gather(c, state.normed), found);
    ops_.device().download(logits.data, found.data, found.bytes());
  });
}

std::string Model::first_non_finite(const Microbatch& batch) {
  std::string found;
  bool seen = false;
  // Attention mixes the rows of the ranks that share the sequences: the first of them to see it names the place.
  const Look look = [&](const std::string& place, const Tensor& x) {
    double bad = is_finite(HostCopy(ops_.device(), x)) ? 0 : 1;
    if (bad > 0 && !seen) found = place;
    groups_[GroupKind::sequence].sum({&bad, 1});
    seen = seen || bad > 0;
  };
  for (const Chunk& chunk : chunks_) {
    Alive& state = acquire(0, 0, 1);
    Context c = context(state, Recompute::full);
    chunk_forward(c, chunk, batch, {}, state, look);
    if (chunk.ends) {
      const Tensor losses = c.saved.tensor(c.acc(), {batch.tokens_count()});
      head_.forward(c, weights_.head, state.normed, state.batch.targets, losses);
      look("head", losses);
    }
    release(state);
  }
  return found;
}

ExpertLoad Model::expert_load() const {
  if (!config_.is_moe()) return {};
  double sum = 0;
  for (const auto& state : alive_) sum += state->most_load;
  return {most_layer_load_, sum / static_cast<double>(std::max<std::int64_t>(1, most_alive()))};
}

std::int64_t Model::peak_activation_bytes() const {
  std::int64_t bytes = scratch_.peak_bytes() + recompute_.peak_bytes();
  for (const auto& state : alive_) bytes += state->saved.peak_bytes() + state->routed.peak_bytes();
  for (const TravellingGradient& gradient : travelling_) bytes += gradient.memory.peak_bytes();
  return bytes;
}

std::int64_t Model::system_allocations() const {
  std::int64_t count = scratch_.system_allocations() + recompute_.system_allocations();
  for (const auto& state : alive_) count += state->saved.system_allocations() + state->routed.system_allocations();
  for (const TravellingGradient& gradient : travelling_) count += gradient.memory.system_allocations();
  return count;
}

}  // namespace dropcycle
