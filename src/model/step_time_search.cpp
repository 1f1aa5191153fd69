#include <fmt/format.h>

#include <algorithm>

#include "dropcycle/model/step_time.hpp"

namespace dropcycle {
namespace {

template <class Visit>
void for_each_setting(const Config& layout, Visit&& visit) {
  Config c = layout;
  std::vector<int> splits = {1};
  if (c.model.is_moe() && c.parallel.tensor > 1) splits.push_back(c.parallel.tensor);
  for (const int split : splits) {
    for (const int stages : {1, 2, 4}) {
      if (stages > 1 && c.parallel.pipeline == 1) continue;
      for (const std::int64_t micro_batch : {1, 2, 4, 8}) {
        for (const char* recompute : {"none", "selective", "full"}) {
          c.parallel.overlap_dispatch = false;
          c.parallel.expert_tensor = split;
          c.parallel.virtual_stages = stages;
          c.parallel.schedule = stages > 1 ? "interleaved" : "1f1b";
          c.train.micro_batch = micro_batch;
          c.train.recompute = recompute;
          visit(c);
          if (c.parallel.expert == 1) continue;
          c.parallel.overlap_dispatch = true;
          visit(c);
        }
      }
    }
  }
}

}  // namespace

std::vector<LayoutChoice> fastest_layouts(const Config& config, int ranks, const GpuCluster& cluster, std::size_t count,
                                          int& tried) {
  const PlanOptions options{.compute = DType::bf16, .packed_weights = false, .evaluates = false};
  const int most_context = config.data.sequence_length > 8192 ? 8 : 1;
  std::vector<LayoutChoice> fastest;
  tried = 0;
  for (const Config& layout : layouts_to_try(config, ranks, most_context)) {
    for_each_setting(layout, [&](Config setting) {
      auto plan = plan_if_valid(setting, ranks, options);
      if (!plan) return;
      ++tried;
      if (plan->fullest().total() > cluster.memory_bytes - cluster.reserved_bytes) return;
      const StepTime time = step_time(setting, ranks, cluster, own_rules(setting));
      const auto place =
          std::ranges::upper_bound(fastest, time.total(), {}, [](const LayoutChoice& c) { return c.time.total(); });
      fastest.insert(place, {std::move(setting), std::move(*plan), time});
      if (fastest.size() > count) fastest.pop_back();
    });
  }
  return fastest;
}

std::vector<std::string> assumptions(const GpuCluster& m, const SendingRules& t) {
  const auto hidden = [](bool value) { return value ? "hidden" : "not hidden"; };
  return {
      fmt::format("{}: {:.4g} bf16 operations a second at most; products run at {:.4g} times {:.2f}, less where tiles "
                  "don't fill {:.0f} processors",
                  m.name, m.peak_rate, m.product_rate, m.sustained, m.processors),
      "attention at the rates that were measured of cuDNN, 315e12 to 539e12 forward with head size 128",
      fmt::format(
          "memory moves {:.3g} bytes a second, kernels are {:.0f} us apart, the host's look at each MoE layer's "
          "counts costs {:.0f} us",
          m.bandwidth, m.launch_seconds * 1e6, m.host_seconds * 1e6),
      fmt::format("{} GPUs a node: {:.3g} bytes a second to a neighbour in it, {:.3g} to another node; a collective "
                  "costs {:.0f} or {:.0f} us besides",
                  m.node_size, m.node_link, m.network_link, m.node_latency * 1e6, m.network_latency * 1e6),
      fmt::format("of the communication, gradients' sums are {}, gathered weights {}, sends between stages {}, half of "
                  "the rows "
                  "to experts with parallel.overlap_dispatch; all else is waited for, and what is hidden slows nothing",
                  hidden(t.hides_gradients), hidden(t.hides_weights), hidden(t.hides_sends)),
      "the router is even: every expert has as many rows as any other",
  };
}

}  // namespace dropcycle
