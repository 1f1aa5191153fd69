// The memory of a stage's forward and backward: each function takes and gives back what its layer does, in its order.
#include <algorithm>
#include <array>
#include <cmath>

#include "dropcycle/layers/lm_head.hpp"
#include "dropcycle/model/gradient_memory.hpp"
#include "plan_sizes.hpp"

namespace dropcycle {
namespace {

// An arena without memory. What was lent comes first, as in Arena.
struct Ledger {
  double used = 0, peak = 0;
  struct Lent {
    double size = 0, used = 0;
  };
  std::array<Lent, Arena::kLenders> lent;
  void take(double bytes) {
    const double rounded = std::ceil(bytes / kAlignment) * kAlignment;
    for (Lent& part : lent) {
      if (part.used + rounded > part.size) continue;
      part.used += rounded;
      return;
    }
    peak = std::max(peak, used += bytes);
  }
  void borrow(Lender lender, double bytes) { lent[static_cast<std::size_t>(lender)].size = bytes; }

 private:
  static constexpr double kAlignment = 256;
};

// What backward reads.
struct Kept {
  Ledger saved, routed;
  double peak() const { return saved.peak + routed.peak; }
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
  using Lent = GradientLoan;
  explicit Activations(const PlanSizes& sizes) : s(sizes), selective(sizes.recompute == "selective") {}

  // lent: what gradients lend to the first layer, by a lender; each layer lends its own to the next.
  void chunk_forward(const Chunk& chunk, Kept& kept, bool full, const Lent* lent) {
    Ledger& saved = kept.saved;
    saved.take(s.t * s.hidden * s.a);
    if (chunk.begins) embedding();
    saved.take(s.t * s.hidden * s.a);  // delta
    for (std::int64_t layer = chunk.first; layer < chunk.last; ++layer) {
      if (lent) lend(*lent, static_cast<double>(layer - chunk.first), kept);
      if (full) {
        const LedgerScope scope(recompute);
        layer_forward(recompute, recompute, false);
        saved.take(s.t * s.hidden * s.a);
      } else {
        layer_forward(saved, experts_alone() ? saved : kept.routed, layer > chunk.first);
      }
    }
    if (!chunk.ends) return;
    if (!full) saved.take(s.t * s.hidden * s.a);
    saved.take(s.t * s.a);
    saved.take(s.t * s.hidden * s.c);
  }
  void chunk_backward(const Chunk& chunk, Kept& kept, bool alone) {
    const bool full = s.recompute == "full";
    Ledger& saved = kept.saved;
    for (const Lender lender : {Lender::dense, Lender::expert}) saved.borrow(lender, 0);
    if (alone) saved.take(s.t * s.hidden * s.a);
    if (chunk.ends) {
      saved.take(s.g * s.a);
      saved.take(s.t * s.hidden * s.a);
      head(true);
    }
    {
      const LedgerScope scope(recompute);
      if (full) {
        recompute.take(s.t * s.hidden * s.a);
        layer_forward(recompute, recompute, false);
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
    if (has_delta) saved.take(s.t * s.hidden * s.a);
    saved.take(s.t * s.a);
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
  void layer_forward(Ledger& saved, Ledger& routed, bool has_delta) {
    attention_forward(saved, has_delta);
    s.moe ? moe_forward(saved, routed) : mlp_forward(saved);
  }
  void lend(const Lent& lent, double layers, Kept& kept) const {
    kept.saved.borrow(Lender::dense, lent.first + layers * lent.dense);
    (experts_alone() ? kept.saved : kept.routed).borrow(Lender::expert, layers * lent.expert);
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
    saved.take(s.g * s.q * s.c);
    saved.take(s.g * s.heads * s.a);
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
  void moe_forward(Ledger& saved, Ledger& routed) {
    const LedgerScope scope(scratch);
    norm_forward(saved, true);
    if (s.jitter) saved.take(s.t * s.hidden * s.c);
    {
      const LedgerScope router(scratch);
      scratch.take(s.t * s.experts * s.a);
    }
    for (const double columns : {s.chosen * 4, s.chosen * s.a, s.experts * s.a, s.a}) saved.take(s.t * columns);
    saved.take(s.experts * s.a);
    for (int part = 0; part < s.parts; ++part) {
      for (int i = 0; i < 2; ++i) saved.take(s.t * s.chosen * 4 / s.parts);
      for (int i = 0; i < 2 && !experts_alone(); ++i) routed.take(s.m * 4 / s.parts);
    }
    (experts_alone() && !selective ? routed : scratch).take(s.t * s.chosen * s.hidden * s.c);
    for (int part = 0; part < s.parts; ++part) send();
    for (int part = 0; part < s.parts; ++part) {
      receive(routed);
      const double m = s.m / s.parts;
      (experts_alone() ? routed : scratch).take(m * s.hidden * partial());
      routed.take(m * 2 * s.expert_width * s.c);
      {
        const LedgerScope experts(scratch);
        (selective ? scratch : routed).take(m * s.expert_width * s.c);
      }
      send_back(routed);
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
                     const std::vector<Chunk>& chunks, int stages, const std::optional<GradientLoan>& lent) {
  const auto train = [&](Activations& activations, const Chunk& chunk) {
    Kept kept;
    activations.chunk_forward(chunk, kept, of_layer.recompute == "full", lent ? &*lent : nullptr);
    activations.chunk_backward(chunk, kept, chunk.begins && chunk.ends);
    return kept.peak();
  };
  PlanSizes of_evaluation = of_layer;
  of_evaluation.parts = 1;
  Activations keeping(of_chunk), training(of_layer), evaluation(of_evaluation);
  for (const Chunk& chunk : chunks) {
    stage.saved = std::max(stage.saved, train(keeping, chunk));
    train(training, chunk);
    if (!of_layer.evaluates) continue;
    Kept kept;
    evaluation.chunk_forward(chunk, kept, true, nullptr);
    if (chunk.ends) evaluation.head(false);
    stage.saved = std::max(stage.saved, kept.peak());
  }
  const double travelling = stages > 1 ? kGradientBuffers * of_layer.t * of_layer.hidden * of_layer.a : 0;
  stage.scratch = std::max(training.scratch.peak, evaluation.scratch.peak) +
                  std::max(training.recompute.peak, evaluation.recompute.peak) + travelling;
}

}  // namespace dropcycle
