#include "run_memory.hpp"

#include <limits>

namespace dropcycle {
namespace {

HeldBytes most(Communicator& ranks, double state, double activations) {
  double bytes[] = {state + activations, state, activations};
  ranks.greatest(bytes);
  return {bytes[0], bytes[1], bytes[2]};
}

}  // namespace

RunMemory run_memory(const Config& config, Machine& machine, const Model& model, const AdamW& optimizer,
                     bool evaluates) {
  Communicator& world = machine.groups.world();
  const auto stage = static_cast<std::size_t>(machine.groups[GroupKind::pp].rank());
  const auto planned = [&](const ExpertLoad& load) {
    const PlanOptions options{
        .compute = machine.compute, .packed_weights = false, .evaluates = evaluates, .expert_load = load};
    const StagePlan held = make_plan(config, world.size(), options).stages[stage];
    return most(world, held.state(), held.activations());
  };
  constexpr double kMost = std::numeric_limits<double>::infinity();
  return {.counted = most(world, static_cast<double>(model.parameters().bytes() + optimizer.bytes()),
                          static_cast<double>(model.peak_activation_bytes())),
          .even = planned({}),
          .routed = planned(model.expert_load()),
          .worst = planned({kMost, kMost})};
}

}  // namespace dropcycle
