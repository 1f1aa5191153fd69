// Sharded against unsharded: a model over 1 to 4 ranks gives the losses and every gradient of one rank, in double,
// for each division of the experts and with experts, and ranks, that get no token.
#include <doctest/doctest.h>
#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../layers/tiny_model.hpp"
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

// Microbatches first, first + stride, ...; `ready` goes with the last one.
Sums run(Model& model, const Case& c, int first, int stride, const Model::GradientsReady& ready) {
  Sums sums;
  sums.counts.resize(static_cast<std::size_t>(c.config.layers * c.config.experts));
  for (int i = first; i < kMicrobatches; i += stride) {
    const std::int64_t sequence = c.uneven && i % 4 == 1 ? 1 : kSequence;
    TinyBatch data(c.config, 1, sequence, i % 2 == 1, static_cast<std::uint64_t>(100 + i));
    data.batch.first_token = static_cast<std::uint64_t>(i * kSequence);
    const bool last = i + stride >= kMicrobatches;
    const MicrobatchLosses losses = model.forward_backward(data.batch, c.training, last ? ready : nullptr);
    sums.language += losses.language;
    sums.balance += losses.balance;
    sums.z += losses.z;
    sums.tokens += static_cast<double>(losses.tokens);
    for (std::size_t k = 0; k < sums.counts.size(); ++k) sums.counts[k] += losses.routing.counts[k];
  }
  return sums;
}

void add_over_ranks(Communicator& world, Sums& sums) {
  double four[] = {sums.language, sums.balance, sums.z, sums.tokens};
  world.all_reduce(Tensor(four, Shape{4}));
  sums = {four[0], four[1], four[2], four[3], std::move(sums.counts)};
  world.all_reduce(Tensor(sums.counts.data(), Shape{static_cast<std::int64_t>(sums.counts.size())}));
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

void check(const Case& c, int expert_ranks) {
  CAPTURE(c.name);
  CAPTURE(expert_ranks);
  const auto ops = make_reference_ops();
  const Groups one = Groups::single();
  const Groups groups = Groups::over_mpi(Topology({.ep = expert_ranks}, world_size()));
  Model alone(c.config, one, *ops, DType::f64), model(c.config, groups, *ops, DType::f64);
  prepare(alone, c);
  prepare(model, c);
  const Sums expected = run(alone, c, 0, 1, nullptr);

  const ParameterStore& store = model.parameters();
  std::vector<GradientBuckets> buckets;
  for (const GradientGroup group : kGradientGroups) {
    buckets.emplace_back(groups[replicas_of(group)], store.gradients(group), offsets_of(store, group),
                         BucketOptions{.bucket_bytes = 2000});
  }
  Sums sums = run(model, c, groups.world().rank(), world_size(), [&](const FlatRange& range) {
    buckets[static_cast<std::size_t>(range.group)].mark_ready(range.first, range.last);
  });
  for (GradientBuckets& bucket : buckets) bucket.finish();
  add_over_ranks(groups.world(), sums);

  CHECK((close(sums.language, expected.language)));
  CHECK((close(sums.balance, expected.balance)));
  CHECK((close(sums.z, expected.z)));
  CHECK(sums.tokens == expected.tokens);
  CHECK(sums.counts == expected.counts);
  if (c.one_expert_takes_all) {
    // The tokens of expert 0 are all there are: the other experts' ranks computed nothing.
    const auto per_layer = static_cast<double>(kMicrobatches * kSequence);
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
    if (fits) check(c, expert_ranks);
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
