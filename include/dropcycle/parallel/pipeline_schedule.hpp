// Pipeline schedules as data: what each stage does, in order. No MPI and no model.
//
// The layers of a model are cut into P*V chunks; chunk c of stage s is number c*P + s of them, so that V = 1 gives each
// stage one stretch of layers, and V > 1 ("virtual stages") lets a microbatch go round the stages V times.
//
//   forward(m, c)   needs what the chunk before sent for m (nothing for the first chunk), sends to the chunk after
//   backward(m, c)  needs forward(m, c) on this stage and the gradient of the chunk after (nothing for the last chunk),
//                   sends to the chunk before
//
// A step receives its input just before it starts and sends its result just after it ends. Between two stages there is
// one channel for activations and one for gradients, and messages of a channel arrive in the order in which they were
// sent. A send never holds the sender up, but for gradients: their memory is a ring of kGradientBuffers buffers, and a
// backward waits until the gradient that its buffer carried before has been received.
//
// Alive: forwards whose backward has not been done; most_alive() is the promise. With M microbatches, on stage s of P:
//   gpipe        all forwards, then all backwards                                              alive <= M
//   1f1b         P-1-s forwards, then forward and backward in turns                            alive <= min(M, P-s)
//                (PipeDream-flush: Narayanan et al., 2021a)
//   interleaved  w = 2(P-1-s) + (V-1)P forwards, then in turns; the chunk changes after P      alive <= min(M*V, w+1)
//                microbatches (Narayanan et al., 2021b)
// Where P doesn't divide M, the interleaved schedule is that of the next multiple of P without the steps of the
// microbatches that are not there.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace dropcycle {

enum class PipelineSchedule { gpipe, one_forward_one_backward, interleaved };
// "gpipe", "1f1b", "interleaved".
std::string_view name(PipelineSchedule schedule);
// Throws Error{usage} for any other text.
PipelineSchedule parse_pipeline_schedule(std::string_view text);

struct PipelineStep {
  enum class Kind { forward, backward };
  Kind kind = Kind::forward;
  std::int64_t microbatch = 0;
  int chunk = 0;  // of this stage: 0 to V-1
  bool operator==(const PipelineStep&) const = default;
};

inline constexpr int kGradientBuffers = 2;

// The steps of `stage`: every forward and backward of M microbatches and V chunks once. Throws Error{usage} where
// another schedule than interleaved has chunks > 1.
std::vector<PipelineStep> pipeline_steps(PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks,
                                         int stage);

// The most forwards that are alive on `stage` at a time (formulas above).
std::int64_t most_alive(PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks, int stage);

// How many layers each of P*V chunks holds, in the order of the layers: L/(P*V), and one more for the first L mod (P*V)
// chunks (the last one also has the head), or `given`. Throws Error{usage} naming the configuration's keys unless every
// chunk gets a layer and `given` has P*V entries whose sum is L.
std::vector<std::int64_t> layers_of_chunks(std::int64_t layers, int stages, int chunks,
                                           const std::vector<std::int64_t>& given = {});

}  // namespace dropcycle
