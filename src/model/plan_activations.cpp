// The memory of a stage's forward and backward: each function takes and gives back what its layer does, in its order.
#include <algorithm>

#include "dropcycle/layers/lm_head.hpp"
#include "plan_sizes.hpp"

namespace dropcycle {
namespace {

// An arena without memory.
struct Ledger {
  double used = 0, peak = 0;
  void take(double bytes) { peak = std::max(peak, used += bytes); }
};

class LedgerScope {
 public:
  explicit LedgerScope(Ledger& ledger) : ledger_(ledger), used_(ledger.used) {}
  ~LedgerScope() { ledger_.used = used_; }
  LedgerScope(const LedgerScope&) = delete;
  LedgerScope& operator=(const LedgerScope&) = delete;

 private:
  Ledger& ledger_;
  double used_;
};

class Activations {
 public:
  explicit Activations(const PlanSizes& sizes) : s(sizes), selective(sizes.recompute == "selective") {}

  void chunk_forward(const Chunk& chunk, Ledger& saved, bool full) {
    saved.take(s.t * s.hidden * s.a);
    if (chunk.begins) embedding();
    saved.take(s.t * s.hidden * s.a);  // delta
    for (std::int64_t layer = chunk.first; layer < chunk.last; ++layer) {
      if (full) {
        const LedgerScope scope(recompute);
        layer_forward(recompute, false);
        saved.take(s.t * s.hidden * s.a);
      } else {
        layer_forward(saved, layer > chunk.first);
      }
    }
    if (chunk.ends) saved.take(s.t * (s.hidden * (s.c + (full ? 0 : s.a)) + s.a));
  }
  void chunk_backward(const Chunk& chunk, Ledger& saved, bool alone) {
    const bool full = s.recompute == "full";
    if (alone) saved.take(s.t * s.hidden * s.a);
    if (chunk.ends) {
      saved.take(s.g * s.a + s.t * s.hidden * s.a);
      head(true);
    }
    {
      const LedgerScope scope(recompute);
      if (full) {
        recompute.take(s.t * s.hidden * s.a);
        layer_forward(recompute, false);
      }
      s.moe ? moe_backward() : mlp_backward();
      attention_backward();
    }
    if (!chunk.begins) return;
    const LedgerScope scope(scratch);
    gather(s.hidden * s.a);
    if (s.tp > 1) scratch.take(s.g * 4);
  }
  void head(bool backward) {
    const LedgerScope all(scratch);
    gather(s.hidden * s.c);
    const LedgerScope sum(scratch);
    if (backward && s.tp > 1) scratch.take(s.g * s.hidden * s.a);
    const double rows = std::min(s.g, static_cast<double>(kLogitsRows));
    const LedgerScope block(scratch);
    scratch.take(rows * s.vocab * (s.a + (backward ? s.c : 0)));
    if (s.tp > 1) scratch.take(rows * 3 * s.a * (1 + s.tp));
  }

  Ledger scratch, recompute;

 private:
  void gather(double row_bytes) {
    if (s.tp > 1) scratch.take(s.g * row_bytes);
  }
  void scatter_sum(double columns) {
    if (s.tp == 1) return;
    const LedgerScope scope(scratch);
    scratch.take(s.g * columns * s.a);
  }
  void norm_forward(Ledger& saved, bool has_delta) {
    saved.take((has_delta ? s.t * s.hidden * s.a : 0) + s.t * s.a);
    (selective ? scratch : saved).take(s.t * s.hidden * s.c);
  }
  void norm_output() {
    if (selective) scratch.take(s.t * s.hidden * s.c);
  }
  void embedding() {
    const LedgerScope scope(scratch);
    if (s.tp == 1) return;
    scratch.take(s.g * 4 + s.g * s.hidden * s.a);
  }
  void layer_forward(Ledger& saved, bool has_delta) {
    attention_forward(saved, has_delta);
    s.moe ? moe_forward(saved) : mlp_forward(saved);
  }

  void gather_keys() {
    if (s.cp == 1) return;
    scratch.take(s.g * 2 * s.kv * s.c + s.whole * 2 * s.kv * s.c);
    const LedgerScope scope(scratch);
    scratch.take(s.whole * (2 * s.kv * s.c + 4));
  }
  void attention_forward(Ledger& saved, bool has_delta) {
    const LedgerScope scope(scratch);
    norm_forward(saved, has_delta);
    saved.take(s.g * (s.q + 2 * s.kv) * s.c);
    gather(s.hidden * s.c);
    saved.take(s.g * (s.q * s.c + s.heads * s.a));
    {
      const LedgerScope keys(scratch);
      gather_keys();
    }
    scatter_sum(s.hidden);
  }
  void attention_backward() {
    const LedgerScope scope(scratch);
    scratch.take(s.g * s.q * s.c);
    stream_gradient();
    scratch.take(s.g * (s.q + 2 * s.kv) * s.c);
    if (s.cp > 1) {
      const LedgerScope keys(scratch);
      gather_keys();
      scratch.take((s.whole + s.g) * 2 * s.kv * s.a);
      scratch.take(s.whole * (2 * s.kv * s.a + 4));
    }
    products_input_backward();
  }
  // In compute, and of all rows.
  void stream_gradient() {
    if (s.c < s.a) scratch.take(s.t * s.hidden * s.c);
    gather(s.hidden * s.c);
  }
  // dx of a column-parallel product, and its input again for dw.
  void products_input_backward() {
    scratch.take(s.t * s.hidden * s.a);
    scatter_sum(s.hidden);
    norm_output();
    gather(s.hidden * s.c);
  }
  void mlp_forward(Ledger& saved) {
    const LedgerScope scope(scratch);
    norm_forward(saved, true);
    saved.take(s.g * 2 * s.width * s.c);
    gather(s.hidden * s.c);
    (selective ? scratch : saved).take(s.g * s.width * s.c);
    scatter_sum(s.hidden);
  }
  void mlp_backward() {
    const LedgerScope scope(scratch);
    scratch.take(s.g * s.width * s.c);
    stream_gradient();
    products_input_backward();
  }

  bool experts_alone() const { return s.ep * s.etp == 1; }
  // Of the experts' results: summed over etp in acc.
  double partial() const { return s.etp > 1 ? s.a : s.c; }
  // Of a part of the rows: send, receive and send_back of the dispatcher.
  void send() {
    if (s.ep > 1) scratch.take(s.received / s.parts * s.hidden * s.c);
  }
  void receive(Ledger& arena) {
    if (experts_alone()) return;
    const double m = s.m / s.parts;
    if (s.etp > 1) scratch.take(m * s.hidden * s.c);
    arena.take(m * s.hidden * s.c);
  }
  void send_back(Ledger& arena) {
    if (experts_alone()) return;
    const double m = s.m / s.parts, received = s.received / s.parts;
    scratch.take(m * s.hidden * partial());
    if (s.etp > 1) {
      scratch.take(received * s.hidden * s.a);
      (s.ep > 1 ? scratch : arena).take(received * s.hidden * s.c);
    }
    if (s.ep > 1) arena.take(s.t * s.chosen / s.parts * s.hidden * s.c);
  }
  void moe_forward(Ledger& saved) {
    const LedgerScope scope(scratch);
    norm_forward(saved, true);
    if (s.jitter) saved.take(s.t * s.hidden * s.c);
    {
      const LedgerScope router(scratch);
      scratch.take(s.t * s.experts * s.a);
    }
    saved.take(s.t * (s.chosen * (4 + s.a) + s.experts * s.a + s.a));
    saved.take(s.t * s.chosen * 8 + (experts_alone() ? 0 : 8 * s.m));
    (experts_alone() && !selective ? saved : scratch).take(s.t * s.chosen * s.hidden * s.c);
    for (int part = 0; part < s.parts; ++part) send();
    for (int part = 0; part < s.parts; ++part) {
      receive(saved);
      const double m = s.m / s.parts;
      (experts_alone() ? saved : scratch).take(m * s.hidden * partial());
      saved.take(m * 2 * s.expert_width * s.c);
      {
        const LedgerScope experts(scratch);
        (selective ? scratch : saved).take(m * s.expert_width * s.c);
      }
      send_back(saved);
    }
  }
  void moe_backward() {
    const LedgerScope scope(scratch);
    scratch.take(s.t * s.chosen * (s.hidden * s.c + s.a));
    for (int part = 0; part < s.parts; ++part) send();
    norm_output();
    for (int part = 0; part < s.parts; ++part) {
      const double m = s.m / s.parts;
      if (experts_alone() && selective) scratch.take(m * s.hidden * s.c);
      receive(scratch);
      scratch.take(m * s.hidden * partial());
      {
        const LedgerScope experts(scratch);
        scratch.take(m * s.expert_width * s.c);
      }
      send_back(scratch);
    }
    scratch.take(s.t * s.hidden * s.a);
    scratch.take(s.t * s.experts * s.a + (s.jitter ? s.t * s.hidden * s.a : 0));
  }

  const PlanSizes& s;
  const bool selective;
};

}  // namespace

void add_activations(StagePlan& stage, const PlanSizes& of_chunk, const PlanSizes& of_layer,
                     const std::vector<Chunk>& chunks, int stages) {
  const auto train = [&](Activations& activations, const Chunk& chunk) {
    Ledger saved;
    activations.chunk_forward(chunk, saved, of_layer.recompute == "full");
    activations.chunk_backward(chunk, saved, chunk.begins && chunk.ends);
    return saved.peak;
  };
  PlanSizes of_evaluation = of_layer;
  of_evaluation.parts = 1;
  Activations keeping(of_chunk), training(of_layer), evaluation(of_evaluation);
  for (const Chunk& chunk : chunks) {
    stage.saved = std::max(stage.saved, train(keeping, chunk));
    train(training, chunk);
    if (!of_layer.evaluates) continue;
    Ledger saved;
    evaluation.chunk_forward(chunk, saved, true);
    if (chunk.ends) evaluation.head(false);
  }
  const double travelling = stages > 1 ? kGradientBuffers * of_layer.t * of_layer.hidden * of_layer.a : 0;
  stage.scratch = std::max(training.scratch.peak, evaluation.scratch.peak) +
                  std::max(training.recompute.peak, evaluation.recompute.peak) + travelling;
}

}  // namespace dropcycle
