// What a training step sends, by formula: bytes of each group and kind of collective, for one rank. The same numbers
// are counted while it runs (parallel/traffic.hpp). With n ranks in a group, c and a bytes of a compute and an acc
// value, T = B S / CP rows of a microbatch on the ranks of tp, Tl = T / TP on this one, per microbatch unless said
// otherwise:
//
//   tp         per layer all_gather 3 T H c, reduce_scatter 2 T H a for attention, the same for a dense MLP;
//              embedding: reduce_scatter T H a, all_gather T H c;  head: all_gather T H c + 3 n T a, reduce_scatter T H
//              a; once a step and layer, where key/value heads are shared: all_reduce 2 Nkv D H a
//   cp         per layer all_gather 2 B S W c, reduce_scatter B S W a, W = 2 Nkv_local D
//   pp         sends of Tl H c to each neighbour of a chunk, and E float64 shares with it (MoE)
//   ep         per MoE layer all_to_all 4 Tl K H c (n - 1) / n, if every rank gets equally many rows
//   etp        per MoE layer all_gather 2 M H c, reduce_scatter 2 M H a, M = n Tl K, likewise
//   full recompute adds each layer's forward share once more: of tp an all_gather and a reduce_scatter, of cp an
//              all_gather, of ep and etp a half
//   embedding  once a step: all_reduce V_local H a (tied, PP > 1)
//   gradients  once a step, of a group's N elements: reduce_scatter N a and all_gather N w (w: a weight's bytes) under
//   a
//              sharded optimizer, else all_reduce N a
#pragma once

#include <array>

#include "dropcycle/model/model.hpp"

namespace dropcycle {

// By GroupKind.
using GroupTraffic = PerGroupKind<Traffic>;

struct StepSizes {
  std::int64_t micro_batch = 1, sequence = 1;  // B, S of the whole sequences
  std::int64_t microbatches = 1;               // of a step on this rank
  DType compute = DType::f32;
  Recompute recompute = Recompute::none;
};

// `groups` may be Groups::planned().
GroupTraffic step_traffic(const ModelConfig& config, const Groups& groups, const PipelineOptions& pipeline,
                          const ShardOptions& shards, const StepSizes& sizes);

}  // namespace dropcycle
