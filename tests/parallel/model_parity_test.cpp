// Sharded against unsharded: a model over 1 to 4 ranks gives the losses and every gradient of one rank, in double,
// for each division of the experts and with experts, and ranks, that get no token.
#include "model_parity.hpp"

#include <numeric>

#include "dropcycle/layers/context_parallel.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

// Every number of expert ranks that divides both the ranks and the experts.
void check_all_divisions(const ParityCase& c) {
  for (int expert_ranks = 1; expert_ranks <= world_size(); ++expert_ranks) {
    const bool fits =
        world_size() % expert_ranks == 0 && (c.config.experts == 0 || c.config.experts % expert_ranks == 0);
    if (fits) check_parity(c, {.ep = expert_ranks});
  }
}

// Every number of context ranks, with every number of expert ranks on top.
void check_all_contexts(ParityCase c) {
  c.batch = 2;
  c.sequence = 24;
  for (int context = 2; context <= world_size(); ++context) {
    if (world_size() % context != 0) continue;
    for (int expert_ranks = 1; expert_ranks <= world_size(); ++expert_ranks) {
      const bool fits =
          world_size() % expert_ranks == 0 && (c.config.experts == 0 || c.config.experts % expert_ranks == 0);
      if (fits && (c.config.is_moe() || expert_ranks == 1)) check_parity(c, {.cp = context, .ep = expert_ranks});
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

TEST_CASE("half of the rows travel while the other half's experts compute") {
  const auto all = training_with(BalanceScope::all_layers), per = training_with(BalanceScope::per_layer, 0.3, 0.1);
  const auto check = [](ParityCase c) {
    c.training.overlap_dispatch = true;
    check_all_divisions(c);
  };
  check({"12 experts, K = 2", tiny_moe(12, 2), all});
  check({"4 experts, K = 1", tiny_moe(4, 1), per});
  check({"4 experts, K = E", tiny_moe(4, 4), all});
  check({"one expert takes all", tiny_moe(12, 1), all, true});
  check({.name = "empty halves", .config = tiny_moe(12, 2), .training = per, .uneven = true});
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    auto training = all;
    training.recompute = recompute;
    check({"recompute", tiny_moe(12, 2), training});
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
  Context c{*ops, groups, saved, saved, scratch, DType::f64, 0};
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
