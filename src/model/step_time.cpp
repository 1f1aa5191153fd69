#include "dropcycle/model/step_time.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "plan_sizes.hpp"

namespace dropcycle {
namespace {

// Rates of cuDNN 9's flash attention on an H100 SXM, bf16, by sequence length, in 1e12.
constexpr std::array<double, 6> kAttentionLengths = {512, 1024, 2048, 4096, 8192, 16384};
constexpr std::array<double, 6> kForward128 = {315, 410, 484, 518, 529, 539};       // causal
constexpr std::array<double, 6> kForward128Whole = {497, 574, 617, 609, 600, 595};  // without a mask
constexpr std::array<double, 6> kForward64Whole = {335, 373, 395, 408, 412, 413};
constexpr std::array<double, 6> kBackward128Whole = {305, 408, 465, 499, 518, 516};

// Between the table's lengths linear in log S; beyond them the nearest.
double at_length(const std::array<double, 6>& table, double sequence) {
  const double clamped = std::clamp(sequence, kAttentionLengths.front(), kAttentionLengths.back());
  const double place = std::log2(clamped / kAttentionLengths.front());
  const auto low = std::min<std::size_t>(static_cast<std::size_t>(place), table.size() - 2);
  const double part = place - static_cast<double>(low);
  return (1 - part) * table[low] + part * table[low + 1];
}

struct Tile {
  double rows, columns, speed;
};
// Smaller tiles read more for each multiplication.
constexpr std::array<Tile, 3> kTiles = {{{128, 256, 1}, {128, 128, 0.9}, {64, 128, 0.75}}};

double wave_share(const GpuCluster& cluster, double m, double n) {
  double best = 0;
  for (const Tile& tile : kTiles) {
    const double tiles = std::ceil(m / tile.rows) * std::ceil(n / tile.columns);
    const double waves = std::ceil(tiles / cluster.processors);
    const double filled = m * n / (tile.rows * tile.columns);
    best = std::max(best, tile.speed * filled / (waves * cluster.processors));
  }
  return best;
}

// Of one layer, or of what stands once in a model.
struct Seconds {
  double products = 0, attention = 0, memory = 0, host = 0, tensor = 0, context = 0, expert = 0;
  double total() const { return products + attention + memory + host + tensor + context + expert; }
  Seconds& operator+=(const Seconds& x) {
    products += x.products, attention += x.attention, memory += x.memory, host += x.host;
    tensor += x.tensor, context += x.context, expert += x.expert;
    return *this;
  }
};
Seconds operator*(double factor, Seconds x) {
  x.products *= factor, x.attention *= factor, x.memory *= factor, x.host *= factor;
  x.tensor *= factor, x.context *= factor, x.expert *= factor;
  return x;
}

class Estimate {
 public:
  Estimate(const Config& config, int ranks, const GpuCluster& cluster, const SendingRules& rules)
      : config_(config),
        cluster_(cluster),
        rules_(rules),
        options_{.compute = DType::bf16, .packed_weights = false, .evaluates = false},
        plan_(make_plan(config, ranks, options_)),
        topology_(plan_.layout, ranks),
        s_(plan_sizes(config, topology_, options_, 1)),
        r_(rules.residual_bytes) {}

  StepTime run() {
    const PipelineOptions pipeline = pipeline_options(config_);
    const auto stages = static_cast<double>(s_stages());
    const auto microbatches = static_cast<double>(plan_.microbatches);
    Seconds slowest;
    double backward = 0, sends = 0;
    for (int stage = 0; stage < s_stages(); ++stage) {
      const std::vector<Chunk> chunks = chunks_of(config_.model, s_stages(), stage, pipeline);
      Seconds forward, back;
      for (const Chunk& chunk : chunks) add_chunk(chunk, forward, back);
      if ((forward.total() + back.total()) <= slowest.total()) continue;
      backward = back.total();
      sends = sends_of(chunks, stage);
      slowest = forward;
      slowest += back;
    }
    StepTime t{.products = microbatches * slowest.products,
               .attention = microbatches * slowest.attention,
               .memory = microbatches * slowest.memory,
               .host = microbatches * slowest.host,
               .tensor = microbatches * slowest.tensor,
               .context = microbatches * slowest.context,
               .expert = microbatches * slowest.expert,
               .sends = microbatches * sends};
    t.bubble = (stages - 1) * (slowest.total() + sends) / pipeline.virtual_stages;
    add_once_a_step(t, backward, slowest.total() - backward);
    const double tokens = static_cast<double>(config_.train.global_batch * config_.data.sequence_length);
    t.tokens_per_second = tokens / t.total();
    t.mfu = t.tokens_per_second * model_flops_per_token(config_.model, config_.data.sequence_length) /
            (cluster_.peak_rate * topology_.world_size());
    return t;
  }

 private:
  int s_stages() const { return plan_.layout.pp; }

  double collective(GroupKind group, Collective kind, double bytes) const {
    return collective_seconds(cluster_, kind, topology_.members(group, 0), bytes);
  }
  double moved(double bytes) const { return bytes / cluster_.bandwidth + cluster_.launch_seconds; }

  // x[m,k] w[n,k]ᵀ: forward, and what backward needs.
  double forward_product(double m, double n, double k, double bytes) const {
    return product_seconds(cluster_, m, n, k, m * n * bytes);
  }
  double backward_products(double m, double n, double k, double bytes) const {
    return product_seconds(cluster_, m, k, n, m * k * bytes) + product_seconds(cluster_, n, k, m, 2 * n * k * s_.a);
  }

  void add_chunk(const Chunk& chunk, Seconds& forward, Seconds& backward) const {
    const auto layers = static_cast<double>(chunk.last - chunk.first);
    Seconds layer_forward, layer_backward;
    add_attention(layer_forward, layer_backward);
    s_.moe ? add_experts(layer_forward, layer_backward) : add_mlp(layer_forward, layer_backward);
    if (s_.recompute == "full") layer_backward += layer_forward;
    if (s_.recompute == "selective") {
      layer_backward.memory += 2 * moved(s_.t * s_.hidden * (r_ + s_.c));
      if (s_.moe && s_.ep * s_.etp == 1) layer_backward.memory += moved(s_.t * (1 + s_.chosen) * s_.hidden * s_.c);
    }
    forward += layers * layer_forward;
    backward += layers * layer_backward;
    if (chunk.ends) add_head(forward, backward);
  }

  // Norm with the residual addition before it, and its adjoint with the rounding of the gradient.
  void add_norm(Seconds& forward, Seconds& backward) const {
    forward.memory += moved(s_.t * s_.hidden * (3 * r_ + s_.c));
    backward.memory += moved(s_.t * s_.hidden * 4 * r_) + moved(s_.t * s_.hidden * (r_ + s_.c));
  }

  // The rows of all tp ranks before split products, and sums after them.
  void add_tensor(Seconds& forward, Seconds& backward) const {
    if (s_.tp == 1) return;
    const double rows = s_.g * s_.hidden;
    const double gather = collective(GroupKind::tp, Collective::all_gather, rows * s_.c);
    const double scatter = collective(GroupKind::tp, Collective::reduce_scatter, rows * r_);
    forward.tensor += gather + scatter;
    backward.tensor += 2 * gather + scatter;
  }

  void add_attention(Seconds& forward, Seconds& backward) const {
    add_norm(forward, backward);
    add_tensor(forward, backward);
    const double width = s_.q + 2 * s_.kv;
    forward.products += forward_product(s_.g, width, s_.hidden, s_.c) + forward_product(s_.g, s_.hidden, s_.q, r_);
    backward.products += backward_products(s_.g, width, s_.hidden, r_) + backward_products(s_.g, s_.hidden, s_.q, s_.c);
    const double rope = moved(2 * s_.g * (s_.q + s_.kv) * s_.c);
    forward.memory += rope;
    backward.memory += rope;
    const auto sequence = static_cast<double>(config_.data.sequence_length);
    const double share = static_cast<double>(config_.train.micro_batch) / s_.cp;  // of whole sequences
    forward.attention += share * attention_seconds(cluster_, sequence, s_.heads, s_.head_size, false);
    backward.attention += share * attention_seconds(cluster_, sequence, s_.heads, s_.head_size, true);
    if (s_.cp == 1) return;
    const double keys = s_.whole * 2 * s_.kv;
    const double gather = collective(GroupKind::cp, Collective::all_gather, keys * s_.c);
    forward.context += gather;
    backward.context += gather + collective(GroupKind::cp, Collective::reduce_scatter, keys * s_.a);
  }

  void add_swiglu(Seconds& forward, Seconds& backward, double rows, double width) const {
    forward.memory += moved(rows * 3 * width * s_.c);
    backward.memory += moved(rows * 6 * width * s_.c);
  }

  void add_mlp(Seconds& forward, Seconds& backward) const {
    add_norm(forward, backward);
    add_tensor(forward, backward);
    forward.products +=
        forward_product(s_.g, 2 * s_.width, s_.hidden, s_.c) + forward_product(s_.g, s_.hidden, s_.width, r_);
    backward.products +=
        backward_products(s_.g, 2 * s_.width, s_.hidden, r_) + backward_products(s_.g, s_.hidden, s_.width, s_.c);
    add_swiglu(forward, backward, s_.g, s_.width);
  }

  void add_experts(Seconds& forward, Seconds& backward) const {
    add_norm(forward, backward);
    const double sent = s_.t * s_.chosen * s_.hidden, parts = s_.parts;
    const double rows = s_.m / s_.local_experts / parts, products = parts * s_.local_experts;
    const double computed = products * (forward_product(rows, 2 * s_.expert_width, s_.hidden, s_.c) +
                                        forward_product(rows, s_.hidden, s_.expert_width, s_.c));
    const double computed_back = products * (backward_products(rows, 2 * s_.expert_width, s_.hidden, s_.c) +
                                             backward_products(rows, s_.hidden, s_.expert_width, s_.c));
    forward.products += computed;
    backward.products += computed_back;
    add_swiglu(forward, backward, s_.m, s_.expert_width);
    // Router; rows to the order of the experts and back, once more where they come from other ranks.
    const double permuted = moved(s_.t * s_.hidden * s_.c + sent * s_.c) + moved(sent * s_.c + s_.t * s_.hidden * r_);
    forward.memory += permuted + 6 * cluster_.launch_seconds + moved(s_.t * s_.hidden * s_.c);
    backward.memory += permuted + moved(sent * s_.c) + 4 * cluster_.launch_seconds + moved(2 * s_.t * s_.hidden * s_.c);
    if (s_.ep * s_.etp > 1 && s_.local_experts > 1) {
      forward.memory += 2 * moved(2 * s_.m * s_.hidden * s_.c);
      backward.memory += 2 * moved(2 * s_.m * s_.hidden * s_.c);
    }
    forward.host += cluster_.host_seconds;
    if (s_.ep > 1) {
      const double exchange =
          collective(GroupKind::ep, Collective::all_to_all, sent * s_.c * (s_.ep - 1) / s_.ep / parts);
      forward.expert += waited(2 * parts * exchange, computed);
      backward.expert += waited(2 * parts * exchange, computed_back);
    }
    if (s_.etp > 1) {
      const double rows_of_all = s_.m * s_.hidden;
      const double both = collective(GroupKind::etp, Collective::all_gather, rows_of_all * s_.c) +
                          collective(GroupKind::etp, Collective::reduce_scatter, rows_of_all * r_);
      forward.expert += both;
      backward.expert += both;
    }
  }

  // What is left of the exchange of rows where it comes in parts, each hidden behind the experts' work on another.
  double waited(double exchange, double computed) const {
    return s_.parts == 1 ? exchange : std::max(exchange / s_.parts, exchange - computed);
  }

  void add_head(Seconds& forward, Seconds& backward) const {
    add_norm(forward, backward);
    add_tensor(forward, backward);
    forward.products += forward_product(s_.g, s_.vocab, s_.hidden, s_.a);
    backward.products += backward_products(s_.g, s_.vocab, s_.hidden, r_);
    forward.memory += moved(s_.g * s_.vocab * (s_.a + s_.a + s_.c));
  }

  // What a stage waits for of its neighbours, for one microbatch.
  double sends_of(const std::vector<Chunk>& chunks, int stage) const {
    if (s_stages() == 1 || rules_.hides_sends) return 0;
    const int rank = topology_.rank_of(0, 0, 0, stage), next = topology_.rank_of(0, 0, 0, (stage + 1) % s_stages());
    double sum = 0;
    for (const Chunk& chunk : chunks) {
      const double one = collective_seconds(cluster_, Collective::send, {std::min(rank, next), std::max(rank, next)},
                                            s_.t * s_.hidden * r_);
      sum += (chunk.begins ? 0 : one) + (chunk.ends ? 0 : one);
    }
    return sum;
  }

  void add_once_a_step(StepTime& t, double backward, double forward) const {
    const StagePlan& stage = *std::ranges::max_element(plan_.stages, {}, &StagePlan::parameters);
    const double dense_ranks = s_.cp * plan_.layout.dp, expert_ranks = plan_.edp;
    const double layers = static_cast<double>(stage.layers);
    const double experts = s_.moe ? layers * 3 * s_.local_experts * s_.hidden * s_.expert_width : 0;
    const double dense = stage.parameters - experts;
    const bool sharded = config_.parallel.shard_optimizer;
    const double kept = sharded ? dense / dense_ranks + experts / expert_ranks : dense + experts;
    t.optimizer = moved(28 * kept) + 2 * moved(4 * (dense + experts));
    const auto once = [&](Collective kind, double bytes) {
      return collective(GroupKind::dense_gradient, kind, dense * bytes) +
             collective(GroupKind::expert_gradient, kind, experts * bytes);
    };
    const double reduced = once(sharded ? Collective::reduce_scatter : Collective::all_reduce, s_.a);
    const double gathered = sharded ? once(Collective::all_gather, s_.c) : 0;
    // Of one microbatch's work; the first and last bucket have nothing to hide behind.
    constexpr double kHidden = 0.9;
    t.gradients = rules_.hides_gradients ? std::max(0.1 * reduced, reduced - kHidden * backward) : reduced;
    t.weights = rules_.hides_weights ? std::max(0.1 * gathered, gathered - kHidden * forward) : gathered;
  }

  const Config& config_;
  const GpuCluster& cluster_;
  const SendingRules& rules_;
  PlanOptions options_;
  Plan plan_;
  Topology topology_;
  PlanSizes s_;
  double r_;
};

}  // namespace

SendingRules own_rules(const Config& config) {
  return {.residual_bytes = 4,
          .hides_sends = false,
          .hides_gradients = config.parallel.overlap_gradients,
          .hides_weights = config.parallel.overlap_weights};
}

SendingRules megatron_core_rules() {
  return {.residual_bytes = 2, .hides_sends = true, .hides_gradients = true, .hides_weights = true};
}

double model_flops_per_token(const ModelConfig& c, std::int64_t sequence) {
  const auto n = [](std::int64_t value) { return static_cast<double>(value); };
  const double hidden = n(c.hidden_size), q = n(c.heads * c.head_size), kv = n(c.kv_heads * c.head_size);
  const double used = c.is_moe() ? n(c.experts_per_token) : 1;
  const double layer = 2 * hidden * (2 * q + 2 * kv) + 4 * n(sequence) * q + 2 * hidden * n(c.experts) +
                       6 * used * hidden * n(c.intermediate_size);
  return 3 * (n(c.layers) * layer + 2 * hidden * n(c.vocab_size));
}

double product_seconds(const GpuCluster& cluster, double m, double n, double k, double result_bytes) {
  const double rate = cluster.product_rate * cluster.sustained * wave_share(cluster, m, n);
  return 2 * m * n * k / rate + result_bytes / cluster.bandwidth + cluster.launch_seconds;
}

double attention_seconds(const GpuCluster& cluster, double sequence, double heads, double head_size, bool backward) {
  const double operations = 2 * sequence * sequence * heads * head_size;  // 4 S² D, half of it seen
  const double masked = at_length(kForward128, sequence) / at_length(kForward128Whole, sequence);
  // Head sizes below 128: the rate of 64, by the table without a mask.
  const double narrow =
      head_size >= 128 ? 1 : at_length(kForward64Whole, sequence) / at_length(kForward128Whole, sequence);
  const double whole = at_length(backward ? kBackward128Whole : kForward128Whole, sequence);
  const double rate = 1e12 * whole * masked * narrow;
  return (backward ? 2.5 : 1) * operations / rate + cluster.launch_seconds * (backward ? 3 : 1);
}

double collective_seconds(const GpuCluster& cluster, Collective kind, const std::vector<int>& ranks, double bytes) {
  const int count = static_cast<int>(ranks.size());
  if (count < 2) return 0;
  const double sent = bytes_sent(kind, count, bytes);
  const int node = ranks.front() / cluster.node_size;
  const double local =
      static_cast<double>(std::ranges::count_if(ranks, [&](int r) { return r / cluster.node_size == node; }));
  if (static_cast<int>(local) == count) return cluster.node_latency + sent / cluster.node_link;
  if (kind == Collective::all_to_all) {
    const double inside = sent * (local - 1) / (count - 1);
    return cluster.network_latency + std::max(inside / cluster.node_link, (sent - inside) / cluster.network_link);
  }
  return cluster.network_latency * std::log2(count) + sent / std::min(cluster.node_link, local * cluster.network_link);
}

StepTime step_time(const Config& config, int ranks, const GpuCluster& cluster, const SendingRules& rules) {
  return Estimate(config, ranks, cluster, rules).run();
}

}  // namespace dropcycle
