// One optimizer step: forward and backward of every microbatch, sums over replicas, norm, clipping, update.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/data/dataset.hpp"
#include "dropcycle/model/model.hpp"
#include "dropcycle/optim/adamw.hpp"
#include "dropcycle/parallel/gradient_buckets.hpp"

namespace dropcycle {

struct StepResult {
  double loss = 0;     // language-model loss, nats per predicted token of the global batch
  double balance = 0;  // mean over microbatches; 0 for a dense model
  double z = 0;
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;
  std::int64_t tokens = 0;                       // predicted
  std::vector<std::vector<double>> expert_load;  // [L][E], rows sum to 1
  PerGroupKind<Traffic> traffic;                 // bytes that this rank sent
};

// The tensors of a loaded batch of `count` sequences of `sequence` tokens, cut or whole.
Microbatch view(const Batch& batch, std::int64_t count, std::int64_t sequence, bool reset_at_document_end);

class TrainingStep {
 public:
  // Throws Error{usage} unless the global batch is a multiple of micro_batch times the data-parallel ranks.
  TrainingStep(Model& model, AdamW& optimizer, const Groups& groups, const Config& config);

  // Update `step` (1 is the first) on this rank's microbatches. Collective. Before the update, throws Error{numeric}
  // if the loss or a gradient isn't finite, naming rank, layer, microbatch and (through `describe`) the samples.
  StepResult run(std::int64_t step, const std::vector<Batch>& microbatches,
                 const std::function<std::string(std::uint64_t sample)>& describe);

 private:
  GradientBuckets make_buckets(GradientGroup group) const;
  std::int64_t global_microbatches() const;
  double count_tokens(const std::vector<Batch>& microbatches) const;  // predicted ones, of all ranks
  void finish_gradients();                                            // waits for the sums over replicas
  MicrobatchTraining microbatch_training(std::int64_t step, std::int64_t global_tokens) const;
  // Sums over dp (dp × cp where each rank knows of its own tokens) and the stages.
  StepResult reduce(const MicrobatchLosses& losses, std::int64_t tokens) const;
  [[noreturn]] void fail_non_finite(std::int64_t step, const StepResult& result, const std::vector<Batch>& microbatches,
                                    const std::function<std::string(std::uint64_t)>& describe);

  Model& model_;
  AdamW& optimizer_;
  const Groups& groups_;
  const Config& config_;
  PerGroup<GradientBuckets> buckets_;
};

}  // namespace dropcycle
