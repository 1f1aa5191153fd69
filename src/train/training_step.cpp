#include "dropcycle/train/training_step.hpp"

#include <fmt/format.h>

#include <cmath>

#include "dropcycle/core/profile.hpp"
#include "dropcycle/model/plan.hpp"

namespace dropcycle {
namespace {

Tensor view_of(const std::vector<std::int32_t>& values) {
  return {const_cast<std::int32_t*>(values.data()), Shape{static_cast<std::int64_t>(values.size())}};
}

// First parameter with a gradient that isn't finite, or "".
std::string first_non_finite_gradient(const ParameterStore& store, Ops& ops) {
  for (const ShardedTensor& part : store.sharded_gradients()) {
    if (!std::isfinite(ops.squared_norm(part.local))) return part.name;
  }
  return "";
}

// The first rank's text that isn't empty, on all ranks.
std::string first_text(Communicator& world, const std::string& text) {
  for (std::string& found : world.all_gather_text(text)) {
    if (!found.empty()) return std::move(found);
  }
  return "";
}

}  // namespace

Microbatch view(const Batch& batch, std::int64_t count, std::int64_t sequence, bool reset_at_document_end) {
  return {.batch = count,
          .sequence = static_cast<std::int64_t>(batch.tokens.size()) / count,
          .whole = sequence,
          .tokens = view_of(batch.tokens),
          .targets = view_of(batch.targets),
          .positions = view_of(batch.positions),
          .first_key = reset_at_document_end ? view_of(batch.first_key) : Tensor(),
          .places = batch.places.empty() ? Tensor() : view_of(batch.places),
          .first_token = batch.first_sample * static_cast<std::uint64_t>(sequence)};
}

TrainingStep::TrainingStep(Model& model, AdamW& optimizer, const Groups& groups, const Config& config)
    : model_(model),
      optimizer_(optimizer),
      groups_(groups),
      config_(config),
      buckets_(PerGroup<GradientBuckets>::of([this](GradientGroup group) { return make_buckets(group); })) {
  check_batch(config, groups.topology());
}

GradientBuckets TrainingStep::make_buckets(GradientGroup group) const {
  const ParameterStore& store = model_.parameters();
  return GradientBuckets(groups_[replicas_of(group)], store.gradients(group), store.offsets(group),
                         {.bucket_bytes = store.shards().bucket_bytes,
                          .overlap = config_.parallel.overlap_gradients,
                          .gather = !store.shards().optimizer});
}

std::int64_t TrainingStep::global_microbatches() const {
  return config_.train.global_batch / config_.train.micro_batch;
}

MicrobatchTraining TrainingStep::microbatch_training(std::int64_t step, std::int64_t global_tokens) const {
  const TrainConfig& t = config_.train;
  const auto microbatches = static_cast<double>(global_microbatches());
  return {.token_scale = 1.0 / static_cast<double>(global_tokens),
          .router = {.balance = t.balance_coefficient / microbatches,
                     .scope = t.balance_scope == "per_layer" ? BalanceScope::per_layer : BalanceScope::all_layers,
                     .z = t.z_coefficient / microbatches,
                     .jitter = t.jitter,
                     .seed = t.seed,
                     .step = static_cast<std::uint64_t>(step)},
          .recompute = parse_recompute(t.recompute),
          .fresh_gradients = true,
          .overlap_dispatch = config_.parallel.overlap_dispatch};
}

double TrainingStep::count_tokens(const std::vector<Batch>& microbatches) const {
  const Span span(SpanKind::phase, "count tokens");
  double tokens = 0;
  for (const Batch& batch : microbatches) {
    for (const std::int32_t target : batch.targets) tokens += target >= 0;
  }
  groups_[GroupKind::dense_gradient].sum({&tokens, 1});
  return tokens;
}

void TrainingStep::finish_gradients() {
  const Span span(SpanKind::phase, "gradient sums");
  for (const GradientGroup group : kGradientGroups) buckets_[group].finish();
}

StepResult TrainingStep::run(std::int64_t step, const std::vector<Batch>& microbatches,
                             const std::function<std::string(std::uint64_t)>& describe) {
  const bool reset = config_.data.reset_at_document_end;
  const PerGroupKind<Traffic> sent_before = groups_.traffic();
  // 1. Predicted tokens of the global batch.
  const double tokens = count_tokens(microbatches);
  const MicrobatchTraining training = microbatch_training(step, static_cast<std::int64_t>(tokens));
  // 2. Forward and backward; the last microbatch's gradients travel as they become final.
  std::vector<Microbatch> batches;
  for (const Batch& batch : microbatches) {
    batches.push_back(view(batch, config_.train.micro_batch, config_.data.sequence_length, reset));
  }
  const MicrobatchLosses losses = model_.forward_backward(
      batches, training, [this](const FlatRange& range) { buckets_[range.group].mark_ready(range.first, range.last); });
  finish_gradients();
  // 3. Norm and losses, the same on all ranks.
  const Span span(SpanKind::phase, "optimizer");
  StepResult result = reduce(losses, static_cast<std::int64_t>(tokens));
  result.gradient_norm = optimizer_.gradient_norm();
  result.learning_rate = learning_rate_at(config_.optimizer, config_.train.steps, step);
  if (!std::isfinite(result.loss) || !std::isfinite(result.gradient_norm)) {
    fail_non_finite(step, result, microbatches, describe);
  }
  // 4. Update.
  optimizer_.update(step, result.learning_rate, optimizer_.clip_factor(result.gradient_norm));
  if (!config_.parallel.overlap_weights) model_.wait_for_weights({});
  result.traffic = groups_.traffic();
  for (const GroupKind kind : kGroupKinds) result.traffic[kind] -= sent_before[kind];
  return result;
}

StepResult TrainingStep::reduce(const MicrobatchLosses& losses, std::int64_t tokens) const {
  double loss = losses.language;
  groups_[GroupKind::dense_gradient].sum({&loss, 1});
  groups_[GroupKind::pp].sum({&loss, 1});
  std::vector<double> sums{losses.balance, losses.z};
  sums.insert(sums.end(), losses.routing.counts.begin(), losses.routing.counts.end());
  groups_[GroupKind::dp].sum(sums);
  groups_[GroupKind::pp].sum(sums);  // every stage knows its own layers' part
  StepResult result;
  result.tokens = tokens;
  result.loss = loss / static_cast<double>(tokens);
  result.balance = sums[0] / static_cast<double>(global_microbatches());
  result.z = sums[1] / static_cast<double>(global_microbatches());
  const auto experts = static_cast<std::size_t>(config_.model.experts);
  for (std::size_t first = 2; first < sums.size(); first += experts) {
    std::vector<double> load(sums.begin() + static_cast<std::ptrdiff_t>(first),
                             sums.begin() + static_cast<std::ptrdiff_t>(first + experts));
    double total = 0;
    for (const double count : load) total += count;
    for (double& count : load) count /= total;
    result.expert_load.push_back(std::move(load));
  }
  return result;
}

void TrainingStep::fail_non_finite(std::int64_t step, const StepResult& result, const std::vector<Batch>& microbatches,
                                   const std::function<std::string(std::uint64_t)>& describe) {
  std::string found;
  for (std::size_t m = 0; m < microbatches.size(); ++m) {  // collective over ep: every rank looks at all of its own
    const Microbatch batch = view(microbatches[m], config_.train.micro_batch, config_.data.sequence_length,
                                  config_.data.reset_at_document_end);
    const std::string layer = model_.first_non_finite(batch);
    if (!layer.empty() && found.empty()) {
      found = fmt::format("rank {}, output of {}, microbatch {}, {}", groups_.world().rank(), layer, m,
                          describe(microbatches[m].first_sample));
    }
  }
  std::string where = first_text(groups_.world(), found);
  if (where.empty()) {  // gradients are sums over the replicas by now: only the parameter can be told
    found = first_non_finite_gradient(model_.parameters(), model_.ops());
    if (!found.empty()) found = fmt::format("gradient of {}, {}", found, describe(microbatches.front().first_sample));
    where = first_text(groups_.world(), found);
  }
  if (where.empty()) where = "no single layer";
  fail(Status::numeric,
       "step {}: loss {} and gradient norm {} must be finite: first seen at {}; the weights were not updated: lower "
       "optimizer.learning_rate, or look at these samples, and resume from the last checkpoint",
       step, result.loss, result.gradient_norm, where);
}

}  // namespace dropcycle
