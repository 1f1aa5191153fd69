// A model over the ranks of a layout against the same model on one rank, in double: losses and every gradient.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "../layers/tiny_model.hpp"
#include "dropcycle/data/dataset.hpp"
#include "dropcycle/ops/backends.hpp"
#include "dropcycle/optim/adamw.hpp"
#include "dropcycle/parallel/gradient_buckets.hpp"
#include "world.hpp"

namespace dropcycle::test {

constexpr std::int64_t kSequence = 7;

struct ParityCase {
  const char* name;
  ModelConfig config;
  MicrobatchTraining training;
  bool one_expert_takes_all = false;
  bool uneven = false;  // some microbatches have a single token
  std::int64_t batch = 1, sequence = kSequence;
  int microbatches = 12;  // over all ranks; divisible by 1, 2, 3 and 4
  PipelineOptions pipeline = {};
};

struct Sums {
  double language = 0, balance = 0, z = 0, tokens = 0;
  std::vector<double> counts;  // [L,E]
};

inline void prepare(Model& model, const ParityCase& c) {
  fill(model);
  if (!c.one_expert_takes_all) return;
  // Equal logits: ties go to the lower expert.
  for (const ShardedTensor& part : model.parameters().sharded_masters()) {
    if (!part.name.ends_with("moe.router")) continue;
    std::fill_n(part.local.as<double>(), part.local.elements(), 0.0);
  }
  model.weights_changed();
}

// This rank's parts of the sequences.
struct CutBatch {
  CutBatch(const TinyBatch& whole, const Communicator& ranks)
      : data(cut_sequences({.tokens = whole.tokens,
                            .targets = whole.targets,
                            .positions = whole.positions,
                            .first_key = whole.first_key},
                           whole.batch.sequence, ranks.rank(), ranks.size())),
        batch(whole.batch) {
    const Shape shape{static_cast<std::int64_t>(data.tokens.size())};
    batch.whole = batch.sequence;
    batch.sequence /= ranks.size();
    batch.tokens = Tensor(data.tokens.data(), shape);
    batch.targets = Tensor(data.targets.data(), shape);
    batch.positions = Tensor(data.positions.data(), shape);
    if (batch.first_key) batch.first_key = Tensor(data.first_key.data(), shape);
    if (!data.places.empty()) batch.places = Tensor(data.places.data(), shape);
  }
  Batch data;
  Microbatch batch;
};

// Microbatches first, first + stride, ... for the n-th of as many data-parallel ranks.
inline Sums run(Model& model, const ParityCase& c, const Groups& groups, const Model::GradientsReady& ready) {
  std::deque<CutBatch> data;
  std::vector<Microbatch> batches;
  const int first = groups[GroupKind::dp].rank(), stride = groups[GroupKind::dp].size();
  for (int i = first; i < c.microbatches; i += stride) {
    const std::int64_t sequence = c.uneven && i % 4 == 1 ? 1 : c.sequence;
    TinyBatch whole(c.config, c.batch, sequence, i % 2 == 1, static_cast<std::uint64_t>(100 + i));
    whole.batch.first_token = static_cast<std::uint64_t>(i * c.sequence);
    batches.push_back(data.emplace_back(whole, groups[GroupKind::cp]).batch);
  }
  const MicrobatchLosses losses = model.forward_backward(batches, c.training, ready);
  return {losses.language, losses.balance, losses.z, static_cast<double>(losses.tokens), losses.routing.counts};
}

// Every stage knows the tokens, and each its own part of the losses.
inline void add_over_ranks(const Groups& groups, Sums& sums) {
  double of_tokens[] = {sums.language, sums.tokens}, of_microbatches[] = {sums.balance, sums.z};
  groups[GroupKind::dense_gradient].sum(of_tokens);
  groups[GroupKind::dp].sum(of_microbatches);
  groups[GroupKind::dp].sum(sums.counts);
  groups[GroupKind::pp].sum(std::span(of_tokens, 1));
  groups[GroupKind::pp].sum(of_microbatches);
  groups[GroupKind::pp].sum(sums.counts);
  sums = {of_tokens[0], of_microbatches[0], of_microbatches[1], of_tokens[1], std::move(sums.counts)};
}

inline std::vector<std::int64_t> offsets_of(const ParameterStore& store, GradientGroup group) {
  std::vector<std::int64_t> offsets;
  for (std::size_t i = 0; i < store.specs().size(); ++i) {
    if (store.range(i).group == group) offsets.push_back(store.range(i).first);
  }
  return offsets;
}

inline bool close(double a, double b) { return std::abs(a - b) <= 1e-12 * (std::abs(a) + std::abs(b)); }

// Largest difference of a part to the same part of the whole tensor, relative to the latter's largest element.
inline double difference(const ShardedTensor& part, const ShardedTensor& whole) {
  const auto *found = part.local.as<double>(), *expected = whole.local.as<double>();
  double greatest = 0, worst = 0;
  for (std::int64_t i = 0; i < whole.local.elements(); ++i) greatest = std::max(greatest, std::abs(expected[i]));
  for_each_run(part, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      const double off = std::abs(found[local + i] - expected[global + i]);
      if (std::isnan(off)) worst = off;  // and stays
      if (off > worst) worst = off;
    }
  });
  return worst == 0 ? 0 : worst / greatest;
}

// Every parameter's gradient on this rank against the same global parameter's of the unsharded model; every parameter
// is on some rank.
inline void compare_gradients(const Model& model, const Model& alone, const Groups& groups) {
  const std::vector<ShardedTensor> reference = alone.parameters().sharded_gradients();
  for (const ShardedTensor& part : model.parameters().sharded_gradients()) {
    CAPTURE(part.name);
    const auto same =
        std::ranges::find_if(reference, [&](const ShardedTensor& other) { return other.name == part.name; });
    REQUIRE(same != reference.end());
    REQUIRE(same->local.shape == part.global_shape);
    CHECK((difference(part, *same) <= 1e-12));
  }
  std::vector<std::string> names;
  for (const ParameterSpec& spec : model.parameters().specs()) names.push_back(spec.name);
  std::set<std::string> found;
  for (const std::string& text : groups.world().all_gather_text(fmt::format("{}", fmt::join(names, "\n")))) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) found.insert(line);
  }
  CHECK(found.size() == reference.size());
}

inline void check_parity(const ParityCase& c, const Layout& layout) {
  CAPTURE(c.name);
  const Topology topology(layout, world_size());
  CAPTURE(topology.describe());
  const auto ops = make_reference_ops();
  const Groups one = Groups::single();
  const Groups groups = Groups::over_mpi(topology);
  Model alone(c.config, one, *ops, DType::f64), model(c.config, groups, *ops, DType::f64, c.pipeline);
  prepare(alone, c);
  prepare(model, c);
  const Sums expected = run(alone, c, one, nullptr);

  const ParameterStore& store = model.parameters();
  std::vector<GradientBuckets> buckets;
  for (const GradientGroup group : kGradientGroups) {
    buckets.emplace_back(groups[replicas_of(group)], store.gradients(group), offsets_of(store, group),
                         BucketOptions{.bucket_bytes = 2000});
  }
  Sums sums = run(model, c, groups, [&](const FlatRange& range) {
    buckets[static_cast<std::size_t>(range.group)].mark_ready(range.first, range.last);
  });
  for (GradientBuckets& bucket : buckets) bucket.finish();
  add_over_ranks(groups, sums);

  CHECK((close(sums.language, expected.language)));
  CHECK((close(sums.balance, expected.balance)));
  CHECK((close(sums.z, expected.z)));
  CHECK(sums.tokens == expected.tokens);
  CHECK(sums.counts == expected.counts);
  if (c.one_expert_takes_all) {
    // The tokens of expert 0 are all there are: the other experts' ranks computed nothing.
    const auto per_layer = static_cast<double>(c.microbatches * c.batch * c.sequence);
    for (std::size_t k = 0; k < sums.counts.size(); ++k) {
      CHECK(sums.counts[k] == (k % static_cast<std::size_t>(c.config.experts) == 0 ? per_layer : 0.0));
    }
    const double load = groups[GroupKind::ep].rank() == 0 ? groups[GroupKind::ep].size() : 0;
    CHECK(model.expert_load().layer == load);
    CHECK(model.expert_load().chunk == load);
  }
  compare_gradients(model, alone, groups);
  const double norm = AdamW(model, groups, {}).gradient_norm();
  CHECK((close(norm, AdamW(alone, one, {}).gradient_norm())));
  const std::int64_t count = c.microbatches / groups[GroupKind::dp].size();
  const std::int64_t promised =
      most_alive(c.pipeline.schedule, layout.pp, count, c.pipeline.virtual_stages, groups[GroupKind::pp].rank());
  CHECK(model.most_alive() <= promised);
  if (count % layout.pp == 0) CHECK(model.most_alive() == promised);
}

}  // namespace dropcycle::test
