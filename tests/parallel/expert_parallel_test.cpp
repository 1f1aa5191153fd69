// The MoE model with its experts shared over ranks against the whole model on one rank: losses, every gradient, in
// float64. Every rank has tokens of its own; the whole model sees all of them.
#include <doctest/doctest.h>
#include <mpi.h>

#include <map>

#include "../layers/tiny_model.hpp"
#include "dropcycle/ops/backends.hpp"
#include "dropcycle/parallel/runtime.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

using Gradients = std::map<std::string, std::vector<double>>;

Gradients gradients_of(const Model& model) {
  const ParameterStore& store = model.parameters();
  Gradients all;
  for (const auto& part :
       store.sharded(store.gradients(GradientGroup::dense), store.gradients(GradientGroup::expert), true, true)) {
    all[part.name].assign(part.local.as<double>(), part.local.as<double>() + part.local.elements());
  }
  return all;
}

// Rank r's tokens; with `starve`, rank 1 gets a single one.
TinyBatch batch_of(const ModelConfig& config, int rank, bool starve) {
  return TinyBatch(config, 1, starve && rank == 1 ? 1 : 6, false, 10 + static_cast<std::uint64_t>(rank));
}

void check(const ModelConfig& config, int expert_ranks, bool starve) {
  const Runtime runtime(nullptr, nullptr);
  const auto ops = make_reference_ops();
  const auto training = training_with(BalanceScope::all_layers, 0.2, 0.1);
  // The whole model over every rank's tokens, one microbatch each.
  const Groups alone = Groups::single();
  Model whole(config, alone, *ops, DType::f64);
  fill(whole);
  std::vector<double> losses;
  for (int rank = 0; rank < runtime.size(); ++rank) {
    losses.push_back(total_loss(whole.forward_backward(batch_of(config, rank, starve).batch, training), training));
  }
  const Gradients expected = gradients_of(whole);
  // The shared model over this rank's tokens.
  const Groups groups = runtime.groups({.ep = expert_ranks});
  Model shared(config, groups, *ops, DType::f64);
  fill(shared);
  for (const Recompute recompute : {Recompute::none, Recompute::full}) {
    MicrobatchTraining own = training;
    own.recompute = recompute;
    for (const GradientGroup group : {GradientGroup::dense, GradientGroup::expert}) {
      ops->fill_zero(shared.parameters().gradients(group));
    }
    const double loss = total_loss(shared.forward_backward(batch_of(config, runtime.rank(), starve).batch, own), own);
    CHECK_FALSE(!(std::abs(loss - losses[static_cast<std::size_t>(runtime.rank())]) <= 1e-12));
    groups[GroupKind::dense_gradient].all_reduce(shared.parameters().gradients(GradientGroup::dense));
    groups[GroupKind::expert_gradient].all_reduce(shared.parameters().gradients(GradientGroup::expert));
    for (const auto& [name, values] : gradients_of(shared)) {
      CAPTURE(name);
      const auto& reference = expected.at(name);
      REQUIRE(values.size() == reference.size());
      double worst = 0;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double difference = std::abs(values[i] - reference[i]);
        worst = !(difference <= worst) ? difference : worst;
      }
      CHECK_FALSE(!(worst <= 1e-12));
    }
  }
}

}  // namespace

TEST_CASE("experts shared over all ranks, over some, or over none") {
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for (int expert_ranks = 1; expert_ranks <= ranks; ++expert_ranks) {
    if (ranks % expert_ranks != 0) continue;
    CAPTURE(expert_ranks);
    check(tiny_moe(12, 2), expert_ranks, false);
    check(tiny_moe(12, 12), expert_ranks, false);
    check(tiny_moe(12, 1), expert_ranks, ranks > 1);  // most experts, and some ranks, get no token
  }
}

TEST_CASE("experts that can't be shared evenly are refused") {
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (ranks == 1) return;
  const Runtime runtime(nullptr, nullptr);
  const auto ops = make_reference_ops();
  const Groups groups = runtime.groups({.ep = ranks});
  CHECK_THROWS_WITH_AS(Model(tiny_moe(ranks + 1, 1), groups, *ops, DType::f32), doctest::Contains("model.experts"),
                       Error);
}
