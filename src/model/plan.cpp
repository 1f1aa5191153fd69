#include "dropcycle/model/plan.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "dropcycle/core/error.hpp"
#include "dropcycle/model/pipeline.hpp"
#include "plan_sizes.hpp"

namespace dropcycle {
namespace {

double worst_load(const PlanSizes& s) { return s.ep * std::min(s.chosen, s.local_experts) / s.chosen; }

struct Numbers {
  double dense = 0, replicated = 0, expert = 0;  // of each gradient group
  double matrices = 0;                           // that products use
};

Numbers numbers_of(const PlanSizes& s, const std::vector<Chunk>& chunks, bool tied, bool alone) {
  Numbers n;
  double layers = 0;
  for (const Chunk& chunk : chunks) layers += static_cast<double>(chunk.last - chunk.first);
  const double attention = s.hidden * (2 * s.q + 2 * s.kv);
  n.dense = layers * (attention + (s.moe ? 0 : 3 * s.hidden * s.width));
  n.expert = s.moe ? layers * 3 * s.local_experts * s.hidden * s.expert_width : 0;
  n.matrices = n.dense + n.expert;
  n.replicated = layers * (2 * s.hidden + (s.moe ? s.experts * s.hidden : 0));
  const double vocabulary = s.vocab * s.hidden;
  const bool begins = chunks.front().begins, ends = chunks.back().ends;
  if (begins) n.dense += vocabulary;
  if (ends) {
    n.replicated += s.hidden;
    n.matrices += vocabulary;
    if (!tied || !alone) n.dense += vocabulary;
  }
  return n;
}

void add_state(StagePlan& stage, const PlanSizes& s, const Numbers& n, const Config& config, const Topology& topology,
               const PlanOptions& options) {
  const Layout& l = topology.layout();
  const bool sharded = config.parallel.shard_optimizer;
  const auto kept = [&](double numbers, int replicas) { return sharded ? numbers / replicas : numbers; };
  const double narrow = kept(n.dense, l.cp * l.dp) + kept(n.expert, topology.expert_data_parallel());
  stage.parameters = n.dense + n.replicated + n.expert;
  stage.weights = (n.dense + n.expert) * s.c + n.replicated * s.a;
  stage.gradients = stage.parameters * s.a;
  stage.masters = narrow * (s.a - s.c);
  stage.moments = 2 * s.a * (narrow + kept(n.replicated, topology.stage_size()));
  stage.packed = options.packed_weights ? 2 * s.c * n.matrices : 0;
}

// With one microbatch in one chunk.
std::optional<GradientLoan> loan_of(const PlanSizes& s, const std::vector<Chunk>& chunks, std::int64_t microbatches,
                                    bool tied) {
  if (chunks.size() > 1 || microbatches > 1) return std::nullopt;
  const Chunk& all = chunks.front();
  const Numbers layer = numbers_of(s, {{.first = 0, .last = 1, .begins = false, .ends = false}}, tied, true);
  const double before = all.begins && !(all.ends && tied) ? s.vocab * s.hidden : 0;
  return GradientLoan{.first = before * s.a, .dense = layer.dense * s.a, .expert = layer.expert * s.a};
}

}  // namespace

PlanSizes plan_sizes(const Config& config, const Topology& topology, const PlanOptions& options, double load) {
  const ModelConfig& m = config.model;
  const Layout& l = topology.layout();
  const auto number = [](std::int64_t value) { return static_cast<double>(value); };
  PlanSizes s;
  s.c = number(size_bytes(options.compute));
  s.a = number(size_bytes(accumulator_of(options.compute)));
  s.tp = l.tp, s.cp = l.cp, s.ep = l.ep, s.etp = l.etp;
  s.whole = number(config.train.micro_batch * config.data.sequence_length);
  s.g = s.whole / l.cp;
  s.t = s.g / l.tp;
  s.hidden = number(m.hidden_size);
  s.heads = number(m.heads) / l.tp;
  s.q = s.heads * number(m.head_size);
  s.kv_heads = number(m.kv_heads);
  s.head_size = number(m.head_size);
  s.kv = std::max(1.0, s.kv_heads / l.tp) * s.head_size;
  s.width = number(m.intermediate_size) / l.tp;
  s.vocab = number((m.vocab_size + l.tp - 1) / l.tp);
  s.moe = m.is_moe();
  s.experts = number(m.experts);
  s.chosen = number(m.experts_per_token);
  s.local_experts = s.experts / l.ep;
  s.expert_width = number(m.intermediate_size) / l.etp;
  if (s.moe) s.received = s.t * s.chosen * std::min(load, worst_load(s));
  s.m = s.received * l.etp;
  s.parts = config.parallel.overlap_dispatch ? kDispatchParts : 1;
  s.jitter = config.train.jitter > 0;
  s.recompute = config.train.recompute;
  s.evaluates = options.evaluates;
  return s;
}

const StagePlan& Plan::fullest() const {
  return *std::ranges::max_element(stages, {}, [](const StagePlan& stage) { return stage.total(); });
}

double sent_in_all(const GroupTraffic& traffic) {
  double sum = 0;
  for (const GroupKind group : kGroupKinds) sum += traffic[group].total();
  return sum;
}

void check_batch(const Config& config, const Topology& topology) {
  const std::int64_t batch = config.train.micro_batch, ranks = topology.layout().dp, unit = batch * ranks;
  if (config.train.global_batch % unit == 0) return;
  const std::int64_t below = config.train.global_batch / unit * unit;
  fail(Status::usage,
       "train.global_batch = {} can't be cut into microbatches of train.micro_batch = {} on {} data-parallel ranks: "
       "choose {}{}",
       config.train.global_batch, batch, ranks, below > 0 ? fmt::format("{} or ", below) : "", below + unit);
}

Plan make_plan(const Config& config, int ranks, const PlanOptions& options) {
  const ParallelConfig& p = config.parallel;
  const Topology topology(
      {.tp = p.tensor, .cp = p.context, .dp = p.data, .pp = p.pipeline, .etp = p.expert_tensor, .ep = p.expert}, ranks);
  check_batch(config, topology);
  const PlanSizes s = plan_sizes(config, topology, options, options.expert_load.chunk);
  const PlanSizes of_layer = plan_sizes(config, topology, options, options.expert_load.layer);
  const PipelineOptions pipeline = pipeline_options(config);
  const Layout& l = topology.layout();
  Plan plan{.layout = l, .edp = topology.expert_data_parallel()};
  plan.microbatches = config.train.global_batch / (config.train.micro_batch * l.dp);
  if (s.moe) plan.worst_expert_load = worst_load(s);
  for (int stage = 0; stage < l.pp; ++stage) {
    const std::vector<Chunk> chunks = chunks_of(config.model, l.pp, stage, pipeline);
    const Numbers numbers = numbers_of(s, chunks, config.model.tie_embeddings, l.pp == 1);
    StagePlan made{.stage = stage};
    for (const Chunk& chunk : chunks) made.layers += chunk.last - chunk.first;
    made.alive = most_alive(pipeline.schedule, l.pp, plan.microbatches, pipeline.virtual_stages, stage);
    add_state(made, s, numbers, config, topology, options);
    add_activations(made, s, of_layer, chunks, l.pp,
                    loan_of(s, chunks, plan.microbatches, config.model.tie_embeddings));
    plan.stages.push_back(made);

    const Groups groups = Groups::planned(topology, topology.rank_of(0, 0, 0, stage));
    const GroupTraffic traffic = step_traffic(config.model, groups, pipeline, {.optimizer = p.shard_optimizer},
                                              {.micro_batch = config.train.micro_batch,
                                               .sequence = config.data.sequence_length,
                                               .microbatches = plan.microbatches,
                                               .compute = options.compute,
                                               .recompute = parse_recompute(s.recompute)});
    if (sent_in_all(traffic) > sent_in_all(plan.traffic)) plan.traffic = traffic;
  }
  return plan;
}

std::optional<Plan> plan_if_valid(Config& config, int ranks, const PlanOptions& options) {
  try {
    resolve(config);
    return make_plan(config, ranks, options);
  } catch (const Error& error) {
    if (error.status() != Status::usage) throw;
    return std::nullopt;
  }
}

std::vector<Config> layouts_to_try(const Config& config, int ranks, int most_context) {
  const auto most_experts = std::max<std::int64_t>(1, config.model.experts);
  const auto most_stages = std::min<std::int64_t>(ranks, config.model.layers);
  std::vector<Config> layouts;
  Config c = config;
  ParallelConfig& p = c.parallel;
  p.data = 0;
  p.pipeline_layers.clear();
  for (p.tensor = 1; p.tensor <= std::min(8, ranks); p.tensor *= 2) {
    for (p.context = 1; p.context <= most_context; p.context *= 2) {
      for (p.pipeline = 1; p.pipeline <= most_stages; p.pipeline *= 2) {
        for (p.expert = 1; p.expert <= most_experts; p.expert *= 2) layouts.push_back(c);
      }
    }
  }
  return layouts;
}

}  // namespace dropcycle
