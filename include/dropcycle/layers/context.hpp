// What every layer's forward and backward are given. Layers hold sizes only: weights, gradients, activations and
// memory are arguments, because several microbatches may be alive at once.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/ops/ops.hpp"
#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// One microbatch of B sequences of S tokens, T = B*S rows; under context parallelism (context_parallel.hpp) this rank's
// parts of each sequence. All i32 [T], on the model's device or (as the data's reader makes them) in the host's memory.
struct Microbatch {
  std::int64_t batch = 0, sequence = 0;  // B; rows of each sequence on this rank
  std::int64_t whole = 0;                // S; 0: all of them are on this rank
  Tensor tokens;
  Tensor targets;                    // negative: not predicted
  Tensor positions;                  // rotary positions
  Tensor first_key;                  // first place of the sequence that a token attends to; empty: 0
  Tensor places;                     // place in the whole sequence; empty: 0, 1, ...
  std::uint64_t first_token = 0;     // global index of the first token in the run (router jitter)
  const Microbatch* host = nullptr;  // the same in the host's memory; null: this is it
  std::int64_t tokens_count() const { return batch * sequence; }
  const Microbatch& on_host() const { return host ? *host : *this; }
  std::int64_t whole_sequence() const { return whole > 0 ? whole : sequence; }
};

enum class Recompute {
  none,
  selective,  // norms, SwiGLU products and the sorting of rows (where all experts are here) are done again in backward
  full,       // each layer keeps its input only and runs forward again in backward
};
// The microbatch on the arena's device; `batch` outlives it.
Microbatch upload(Arena& arena, const Microbatch& batch);
// Host values in the arena's memory.
Tensor upload(Arena& arena, const std::vector<std::int32_t>& values);

// Of train.recompute.
Recompute parse_recompute(std::string_view text);

inline constexpr int kDispatchParts = 2;

struct Context {
  Ops& ops;
  const Groups& groups;
  Arena& saved;           // what backward reads; lives as long as the microbatch
  Arena& routed;          // as `saved`, for sizes that the router decides: `saved` is laid out alike in every step;
                          // where all experts are here, so are these, and it may be `saved` itself
  Arena& scratch;         // given back when the function returns
  DType compute;          // type of weights and activations
  std::uint64_t version;  // of the weights (see Weight)
  Recompute recompute = Recompute::none;
  int dispatch_parts = 1;  // a MoE layer dispatches its tokens in so many parts, at most kDispatchParts

  DType acc() const { return accumulator_of(compute); }
  Weight weight(const Tensor& tensor) const { return {tensor, version}; }
};

// The residual stream between layers: its value is x + delta. The addition is fused into the next layer's norm.
// Both [T,H] acc, as the stream's gradient is: what every layer adds to is not rounded by each. delta may be empty
// (zero).
struct Stream {
  Tensor x, delta;
};

// Residual addition and norm at the head of every layer, and what its backward needs.
struct NormSaved {
  Tensor sum;      // [T,H] acc = x + delta, the norm's input
  Tensor inv_rms;  // [T]
  Tensor normed;   // [T,H]; empty when it is recomputed
};

// x in compute: itself, or rounded into scratch. For the stream's gradient, which products take in compute.
Tensor in_compute(Context& context, const Tensor& x);

// sum = x + delta; returns normed = rms_norm(sum) w. Under selective recompute `normed` lies in scratch.
Tensor norm_forward(Context& context, const Stream& in, const Tensor& w, double epsilon, NormSaved& saved);
// normed again: the saved one, or recomputed into scratch.
Tensor norm_output(Context& context, const Tensor& w, double epsilon, const NormSaved& saved);

}  // namespace dropcycle
