// Sharded against unsharded: a model over 1 to 4 ranks gives the losses and every gradient of one rank, in double,
// for each division of the experts and with experts, and ranks, that get no token.
#include <doctest/doctest.h>
#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "../layers/tiny_model.hpp"
#include "dropcycle/data/dataset.hpp"
#include "dropcycle/layers/context_parallel.hpp"
#include "dropcycle/ops/backends.hpp"
#include "dropcycle/parallel/gradient_buckets.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

constexpr int kMicrobatches = 12;  // divisible by 1, 2, 3 and 4 ranks
constexpr std::int64_t kSequence = 7;

struct Case {
  const char* name;
  ModelConfig config;
  MicrobatchTraining training;
  bool one_expert_takes_all = false;
  bool uneven = false;  // some microbatches have a single token
  std::int64_t batch = 1, sequence = kSequence;
};

struct Sums {
  double language = 0, balance = 0, z = 0, tokens = 0;
  std::vector<double> counts;  // [L,E]
};

int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

void prepare(Model& model, const Case& c) {
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

// Microbatches first, first + stride, ... for the n-th of as many data-parallel ranks; `ready` goes with the last one.
Sums run(Model& model, const Case& c, const Groups& groups, const Model::GradientsReady& ready) {
  Sums sums;
  sums.counts.resize(static_cast<std::size_t>(c.config.layers * c.config.experts));
  const int first = groups[GroupKind::dp].rank(), stride = groups[GroupKind::dp].size();
  for (int i = first; i < kMicrobatches; i += stride) {
    const std::int64_t sequence = c.uneven && i % 4 == 1 ? 1 : c.sequence;
    TinyBatch data(c.config, c.batch, sequence, i % 2 == 1, static_cast<std::uint64_t>(100 + i));
    data.batch.first_token = static_cast<std::uint64_t>(i * c.sequence);
    const CutBatch cut(data, groups[GroupKind::cp]);
    const bool last = i + stride >= kMicrobatches;
    const MicrobatchLosses losses = model.forward_backward(cut.batch, c.training, last ? ready : nullptr);
    sums.language += losses.language;
    sums.balance += losses.balance;
    sums.z += losses.z;
    sums.tokens += static_cast<double>(losses.tokens);
    for (std::size_t k = 0; k < sums.counts.size(); ++k) sums.counts[k] += losses.routing.counts[k];
  }
  return sums;
}

void add_over_ranks(const Groups& groups, Sums& sums) {
  double of_tokens[] = {sums.language, sums.tokens}, of_microbatches[] = {sums.balance, sums.z};
  groups[GroupKind::dense_gradient].sum(of_tokens);
  groups[GroupKind::dp].sum(of_microbatches);
  groups[GroupKind::dp].sum(sums.counts);
  sums = {of_tokens[0], of_microbatches[0], of_microbatches[1], of_tokens[1], std::move(sums.counts)};
}

std::vector<std::int64_t> offsets_of(const ParameterStore& store, GradientGroup group) {
  std::vector<std::int64_t> offsets;
  for (std::size_t i = 0; i < store.specs().size(); ++i) {
    if (store.range(i).group == group) offsets.push_back(store.range(i).first);
  }
  return offsets;
}

bool close(double a, double b) { return std::abs(a - b) <= 1e-12 * (std::abs(a) + std::abs(b)); }

// Every parameter's gradient on this rank against the same global parameter's of the unsharded model.
void compare_gradients(const Model& model, const Model& alone) {
  const std::vector<ShardedTensor> reference = alone.parameters().sharded_gradients();
  for (const ShardedTensor& part : model.parameters().sharded_gradients()) {
    CAPTURE(part.name);
    const auto same =
        std::ranges::find_if(reference, [&](const ShardedTensor& other) { return other.name == part.name; });
    REQUIRE(same != reference.end());
    REQUIRE(same->local.shape == part.local.shape);
    const auto *found = part.local.as<double>(), *expected = same->local.as<double>();
    double greatest = 0, worst = 0;
    for (std::int64_t i = 0; i < part.local.elements(); ++i) {
      greatest = std::max(greatest, std::abs(expected[i]));
      if (!(std::abs(found[i] - expected[i]) <= worst)) worst = std::abs(found[i] - expected[i]);
    }
    CHECK((worst <= 1e-12 * greatest));
  }
}

void check(const Case& c, const Layout& layout) {
  CAPTURE(c.name);
  const Topology topology(layout, world_size());
  CAPTURE(topology.describe());
  const auto ops = make_reference_ops();
  const Groups one = Groups::single();
  const Groups groups = Groups::over_mpi(topology);
  Model alone(c.config, one, *ops, DType::f64), model(c.config, groups, *ops, DType::f64);
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
    const auto per_layer = static_cast<double>(kMicrobatches * c.batch * c.sequence);
    for (std::size_t k = 0; k < sums.counts.size(); ++k) {
      CHECK(sums.counts[k] == (k % static_cast<std::size_t>(c.config.experts) == 0 ? per_layer : 0.0));
    }
  }
  compare_gradients(model, alone);
}

// Every number of expert ranks that divides both the ranks and the experts.
void check_all_divisions(const Case& c) {
  for (int expert_ranks = 1; expert_ranks <= world_size(); ++expert_ranks) {
    const bool fits =
        world_size() % expert_ranks == 0 && (c.config.experts == 0 || c.config.experts % expert_ranks == 0);
    if (fits) check(c, {.ep = expert_ranks});
  }
}

// Every number of context ranks, with every number of expert ranks on top.
void check_all_contexts(Case c) {
  c.batch = 2;
  c.sequence = 24;
  for (int context = 2; context <= world_size(); ++context) {
    if (world_size() % context != 0) continue;
    for (int expert_ranks = 1; expert_ranks <= world_size(); ++expert_ranks) {
      const bool fits =
          world_size() % expert_ranks == 0 && (c.config.experts == 0 || c.config.experts % expert_ranks == 0);
      if (fits && (c.config.is_moe() || expert_ranks == 1)) check(c, {.cp = context, .ep = expert_ranks});
    }
  }
}

}  // namespace

TEST_CASE("dense") { check_all_divisions({"dense", tiny_dense(), training_with(BalanceScope::all_layers)}); }

TEST_CASE("MoE over every number of expert ranks") {
  const auto all = training_with(BalanceScope::all_layers), per = training_with(BalanceScope::per_layer);
  check_all_divisions({"12 experts, K = 2", tiny_moe(12, 2), all});
  check_all_divisions({"4 experts, K = 1", tiny_moe(4, 1), per});
  check_all_divisions({"3 experts, K = E", tiny_moe(3, 3), all});
  check_all_divisions({"z-loss and jitter", tiny_moe(12, 3), training_with(BalanceScope::all_layers, 0.3, 0.1)});
}

TEST_CASE("recompute runs the exchanges again") {
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    auto training = training_with(BalanceScope::all_layers);
    training.recompute = recompute;
    check_all_divisions({"recompute", tiny_moe(12, 2), training});
  }
}

TEST_CASE("ranks whose experts get no token") {
  check_all_divisions({"one expert takes all", tiny_moe(12, 1), training_with(BalanceScope::all_layers), true});
}

TEST_CASE("ranks with unequal numbers of tokens") {
  check_all_divisions({.name = "uneven",
                       .config = tiny_moe(12, 2),
                       .training = training_with(BalanceScope::all_layers, 0.2, 0.1),
                       .uneven = true});
}

TEST_CASE("sequences over every number of context ranks") {
  const auto all = training_with(BalanceScope::all_layers), per = training_with(BalanceScope::per_layer);
  check_all_contexts({"dense", tiny_dense(), all});
  check_all_contexts({"12 experts", tiny_moe(12, 2), all});
  check_all_contexts(
      {"4 experts, z-loss and jitter", tiny_moe(4, 2), training_with(BalanceScope::per_layer, 0.3, 0.1)});
  check_all_contexts({"one expert takes all", tiny_moe(12, 1), per, true});
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    auto training = training_with(BalanceScope::all_layers, 0.3, 0.1);
    training.recompute = recompute;
    check_all_contexts({"recompute", tiny_moe(12, 2), training});
  }
}

TEST_CASE("keys and values of whole sequences, and their adjoint") {
  const auto ops = make_reference_ops();
  const Groups groups = Groups::over_mpi(Topology({.cp = world_size()}, world_size()));
  const Communicator& ranks = groups[GroupKind::cp];
  const std::int64_t sequence = 24, sequences = 3, width = 5;
  Arena saved, scratch;
  Context c{*ops, groups, saved, scratch, DType::f64, 0};
  const Microbatch batch{.batch = sequences, .sequence = sequence / ranks.size(), .whole = sequence};
  std::vector<std::int32_t> numbers(static_cast<std::size_t>(sequences * sequence));
  std::iota(numbers.begin(), numbers.end(), 0);
  const Batch mine = cut_sequences({.tokens = numbers, .targets = numbers, .positions = numbers, .first_key = numbers},
                                   sequence, ranks.rank(), ranks.size());
  // Row `number` of the whole holds number * width, number * width + 1, ...
  std::vector<double> x, y(numbers.size() * static_cast<std::size_t>(width));
  for (const std::int32_t number : mine.tokens) {
    for (std::int64_t i = 0; i < width; ++i) x.push_back(static_cast<double>(number * width + i));
  }
  const Tensor whole = gather_sequences(c, batch, Tensor(x.data(), Shape{batch.tokens_count(), width}));
  for (std::int64_t i = 0; i < whole.elements(); ++i) CHECK(whole.as<double>()[i] == static_cast<double>(i));
  // ⟨Ax, y⟩ = ⟨x, Aᵀy⟩, y another one on every rank.
  RandomStream(7, Purpose::test, "y", static_cast<std::uint64_t>(ranks.rank()))
      .fill_normal(Tensor(y.data(), whole.shape), 0, 0, 1);
  const Tensor aty = gather_sequences_backward(c, batch, Tensor(y.data(), whole.shape));
  double sides[2] = {};
  for (std::size_t i = 0; i < y.size(); ++i) sides[0] += whole.as<double>()[i] * y[i];
  for (std::size_t i = 0; i < x.size(); ++i) sides[1] += x[i] * aty.as<double>()[i];
  groups.world().sum(sides);
  CHECK((close(sides[0], sides[1])));
}

TEST_CASE("experts that can't be shared evenly are refused with both numbers") {
  if (world_size() == 1) return;
  const auto ops = make_reference_ops();
  const Groups groups = Groups::over_mpi(Topology({.ep = world_size()}, world_size()));
  try {
    Model model(tiny_moe(world_size() + 1, 1), groups, *ops, DType::f64);
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.status() == Status::usage);
    const std::string text = error.what();
    CHECK(text.find("model.experts = " + std::to_string(world_size() + 1)) != std::string::npos);
    CHECK(text.find("parallel.expert = " + std::to_string(world_size())) != std::string::npos);
  }
}
