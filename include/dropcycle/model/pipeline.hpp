// Which layers each rank of a pipeline holds. The embedding is on the first stage, the final norm and the head on the
// last; with tied embeddings both have a copy of the matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/parallel/communicator.hpp"
#include "dropcycle/parallel/pipeline_schedule.hpp"

namespace dropcycle {

struct PipelineOptions {
  PipelineSchedule schedule = PipelineSchedule::one_forward_one_backward;
  int virtual_stages = 1;            // chunks of layers on each stage
  std::vector<std::int64_t> layers;  // of every chunk, as a microbatch passes them; empty: even
};

// The options that a configuration asks for. Throws Error{usage} where the layers can't be shared out so.
PipelineOptions pipeline_options(const Config& config);

// Neighbouring layers [first, last) on one stage. Chunk c of stage s is number c*P + s.
struct Chunk {
  std::int64_t first = 0, last = 0;
  bool begins = true;  // it starts with the embedding
  bool ends = true;    // final norm and head come after it
};

// The rows of a rank's experts over what an even router gives it.
struct ExpertLoad {
  double layer = 1;  // of the layer and microbatch with most: decides what is taken for a while
  double chunk = 1;  // mean over a chunk's layers, of the microbatch with most: decides what is kept
};

// The chunks of a stage, in the order of its layers. One chunk with all layers where P = 1.
std::vector<Chunk> chunks_of(const ModelConfig& config, int stages, int stage, const PipelineOptions& options);
// Of this rank.
std::vector<Chunk> chunks_of(const ModelConfig& config, const Groups& groups, const PipelineOptions& options);

}  // namespace dropcycle
