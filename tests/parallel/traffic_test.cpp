// Counted bytes of whole training steps are those of the formula, for every layout of 1 to 4 ranks. Routing is balanced
// by choosing all experts (K = E), so that the exchange of rows is known.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "../layers/tiny_model.hpp"
#include "dropcycle/model/communication.hpp"
#include "dropcycle/ops/backends.hpp"
#include "dropcycle/train/training_step.hpp"
#include "world.hpp"

using namespace dropcycle;
using test::world_size;

namespace {

Config config_of(std::int64_t experts, bool shard, const std::string& recompute) {
  Config config;
  config.model = test::tiny_moe(experts, std::max<std::int64_t>(1, experts));
  config.model.intermediate_size = 8;
  config.model.layers = 4;
  config.model.tie_embeddings = experts == 0;
  config.data.sequence_length = 24;
  config.train.steps = 2;
  config.train.global_batch = 12;
  config.train.micro_batch = 1;
  config.train.recompute = recompute;
  config.parallel.shard_optimizer = shard;
  config.parallel.bucket_bytes = 4096;
  return config;
}

std::vector<Batch> batches_of(const Config& config, const Groups& groups) {
  std::vector<Batch> batches;
  const std::int64_t count = config.train.global_batch / config.train.micro_batch / groups[GroupKind::dp].size();
  for (std::int64_t m = 0; m < count; ++m) {
    const auto size = static_cast<std::size_t>(config.train.micro_batch * config.data.sequence_length);
    Batch batch{.first_sample = 0,
                .tokens = std::vector<std::int32_t>(size),
                .targets = std::vector<std::int32_t>(size),
                .positions = std::vector<std::int32_t>(size),
                .first_key = std::vector<std::int32_t>(size)};
    for (std::size_t t = 0; t < size; ++t) {
      batch.tokens[t] = static_cast<std::int32_t>((7 * t + static_cast<std::size_t>(m)) % 23);
      batch.targets[t] = static_cast<std::int32_t>((5 * t) % 23);
      batch.positions[t] = static_cast<std::int32_t>(t % static_cast<std::size_t>(config.data.sequence_length));
    }
    const Communicator& context = groups[GroupKind::cp];
    batches.push_back(cut_sequences(batch, config.data.sequence_length, context.rank(), context.size()));
  }
  return batches;
}

void check(const Layout& layout, std::int64_t experts, DType compute, bool shard, const std::string& recompute,
           bool overlap = false) {
  const Topology topology(layout, world_size());
  CAPTURE(topology.describe());
  CAPTURE(experts);
  CAPTURE(recompute);
  Config config = config_of(experts, shard, recompute);
  config.parallel.overlap_dispatch = overlap;
  const Groups groups = Groups::over_mpi(topology);
  static const auto ops = make_reference_ops();
  const ShardOptions shards{.optimizer = shard, .bucket_bytes = config.parallel.bucket_bytes};
  Model model(config.model, groups, *ops, compute, {}, shards);
  AdamW optimizer(model, groups, config.optimizer);
  TrainingStep step(model, optimizer, groups, config);
  const std::vector<Batch> batches = batches_of(config, groups);
  const StepResult result = step.run(1, batches, [](std::uint64_t) { return std::string(); });

  const StepSizes sizes{.micro_batch = config.train.micro_batch,
                        .sequence = config.data.sequence_length,
                        .microbatches = std::ssize(batches),
                        .compute = compute,
                        .recompute = recompute == "full" ? Recompute::full : Recompute::none};
  const Groups planned = Groups::planned(topology, groups.world().rank());
  const GroupTraffic expected = step_traffic(config.model, planned, {}, shards, sizes);
  double total = 0;
  for (const GroupKind kind : kGroupKinds) {
    for (const Collective collective : kCollectives) {
      const double counted = result.traffic[kind][collective], formula = expected[kind][collective];
      total += counted;
      CAPTURE(std::string(name(kind)));
      CAPTURE(std::string(name(collective)));
      CAPTURE(counted);
      CAPTURE(formula);
      CHECK((std::abs(counted - formula) <= 1e-9 * formula));
    }
  }
  CHECK((total > 0) == (world_size() > 1));
}

}  // namespace

TEST_CASE("counted bytes are the formula's") {
  const int size = world_size();
  std::vector<Layout> layouts = {{}, {.cp = size}, {.pp = size}, {.ep = size}, {.cp = size, .ep = size}};
  if (size == 4) {
    for (const Layout& layout :
         {Layout{.cp = 2}, Layout{.pp = 2}, Layout{.ep = 2}, Layout{.cp = 2, .ep = 4}, Layout{.cp = 2, .pp = 2},
          Layout{.pp = 2, .ep = 2}, Layout{.tp = 2}, Layout{.tp = 2, .cp = 2, .ep = 2}, Layout{.tp = 2, .pp = 2}}) {
      layouts.push_back(layout);
    }
  }
  for (const Layout& layout : layouts) {
    if (layout.ep == 1 && layout.pp != 3) check(layout, 0, DType::bf16, true, "none");
    if (layout.pp == 3) continue;  // four layers
    check(layout, size == 3 ? 3 : 4, DType::f32, layout.cp > 1, "full");
    check(layout, size == 3 ? 3 : 4, DType::bf16, true, "none");
    if (layout.ep > 1) check(layout, size == 3 ? 3 : 4, DType::f32, true, "none", true);
  }
}

TEST_CASE("groups that are planned don't communicate") {
  const Groups planned = Groups::planned(Topology({.cp = 2, .ep = 4}, 8), 5);
  CHECK(planned[GroupKind::dense_gradient].size() == 8);
  CHECK(planned[GroupKind::cp].rank() == 1);
  double x = 1;
  CHECK_THROWS_AS(planned.world().sum({&x, 1}), Error);
}
