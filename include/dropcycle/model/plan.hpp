// What a rank of a layout will hold and send, from the configuration alone: nothing is allocated and no MPI is needed.
//
// Sizes on one rank (B sequences of S tokens in a microbatch; c and a: bytes of a compute and of an accumulator number)
//   g = B S / CP           rows inside products            t = g / TP             rows of the residual stream
//   q = Nq/TP D,  kv = max(1, Nkv/TP) D,  F' = F/TP,  V' = ceil(V/TP)             columns of split matrices
//   E' = E/EP experts of F" = F/ETP columns,  m = t K ETP x    their rows, x: load of the fullest rank (below)
//
// State, in numbers: of a layer H (2q + 2kv) + 2H, and 3 H F' (dense) or E H + 3 E' H F" (MoE); V' H of embedding and
// of head (once where tied on one stage); H of the last norm.
//   weights c (a for norms and routers), gradients a, masters a - c (what the weights leave of them), moments 2a. A
//   sharded optimizer keeps 1/n of masters and moments, n the replicas: dense CP DP, norms and routers TP CP DP,
//   experts EDP. packed: the CPU backend's two copies of each matrix in the order of its matrix units, 2c; bf16 on a
//   processor with AVX-512 BF16 and no matrix units needs none of them, which the plan can't know.
//
// Saved from forward to backward, in bytes, of one microbatch and layer:
//   attention  t H a (sum) + t a + t H c (norm's output*) + g (q + 2kv) c + g q c + g Nq/TP a
//   dense MLP  t H a + t a + t H c* + g 2F' c + g F' c*
//   MoE        t H a + t a + t H c* + t (K (12 + a) + E a + a) + m (2F" + F"*) c (+ t H c with jitter)
//              EP ETP = 1: + m H c* (rows) + m H c (results)      else: + m (H c + 8) (rows) + t K H c (results)
//   chunk      2 t H a, and where the model ends 2 t H a + t H c + t a + g a; + t H a where it also begins
//   * not with recompute = selective. recompute = full keeps t H a a layer, and one layer's at a time is made again.
// times the microbatches that are alive at once: most_alive() of the pipeline's schedule, min(M, P - s) for 1f1b. With
// one microbatch in one chunk most of it lies in the gradients' memory (gradient_memory.hpp) and only what doesn't is
// counted. The gradient between stages takes 2 t H a. scratch is the most that any one layer's forward or backward
// takes for a while: the largest are V'-wide blocks of at most 512 rows of logits, and the experts' rows.
//
// Expert rows: x = 1 when the router is balanced, and at most EP min(K, E') / K, when every token of the ep group goes
// to one rank. The plan is made for both, and, after a run, for the rows that its experts got (Model::expert_load).
//
// What a rank sends: communication.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/core/dtype.hpp"
#include "dropcycle/model/communication.hpp"
#include "dropcycle/model/pipeline.hpp"
#include "dropcycle/parallel/topology.hpp"

namespace dropcycle {

struct PlanOptions {
  DType compute = DType::bf16;
  bool packed_weights = true;  // the CPU backend's
  bool evaluates = true;       // held-out losses between the steps, which take memory like recompute = full
  ExpertLoad expert_load;      // x; more than the worst case counts as it
};

// Bytes on the fullest rank of one pipeline stage.
struct StagePlan {
  int stage = 0;
  std::int64_t layers = 0;
  std::int64_t alive = 0;  // microbatches' chunks whose activations are alive at once
  double parameters = 0;   // numbers
  double weights = 0, gradients = 0, masters = 0, moments = 0, packed = 0;
  double saved = 0;    // of one microbatch's chunk
  double scratch = 0;  // everything else that is temporary
  double state() const { return weights + gradients + masters + moments; }
  double activations() const { return static_cast<double>(alive) * saved + scratch; }
  double total() const { return state() + packed + activations(); }
};

struct Plan {
  Layout layout;
  int edp = 1;
  std::int64_t microbatches = 0;  // M
  double worst_expert_load = 1;   // x at its worst
  std::vector<StagePlan> stages;
  GroupTraffic traffic;  // of a step, by the first rank of the stage that sends most
  const StagePlan& fullest() const;
};
// Bytes of all groups.
double sent_in_all(const GroupTraffic& traffic);

// `config` is resolved. Throws Error{usage} where the layout doesn't fit the ranks or the model, with the numbers and
// the nearest valid choices.
Plan make_plan(const Config& config, int ranks, const PlanOptions& options);
// The same of a config whose settings were changed: resolves it. Nothing where it is not valid on these ranks.
std::optional<Plan> plan_if_valid(Config& config, int ranks, const PlanOptions& options);

// `config` with every layout of powers of two: tp up to 8, cp up to most_context, pp up to the layers, ep up to the
// experts; dp takes the ranks that are left, layers are shared evenly. Most of them are not valid.
std::vector<Config> layouts_to_try(const Config& config, int ranks, int most_context);

// Throws Error{usage} unless the global batch can be cut into microbatches on every data-parallel rank.
void check_batch(const Config& config, const Topology& topology);

}  // namespace dropcycle
