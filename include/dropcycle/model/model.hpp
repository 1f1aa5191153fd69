// Dense Llama and Mixtral-style MoE language models: embedding, L layers of attention and MLP or MoE, norm, head.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/layers/attention.hpp"
#include "dropcycle/layers/lm_head.hpp"
#include "dropcycle/layers/mlp.hpp"
#include "dropcycle/layers/moe/moe.hpp"
#include "dropcycle/model/gradient_memory.hpp"
#include "dropcycle/model/parameter_store.hpp"
#include "dropcycle/model/pipeline.hpp"

namespace dropcycle {

template <class T>
struct LayerParameters {
  AttentionParameters<T> attention;
  MlpParameters<T> mlp;  // dense models
  MoeParameters<T> moe;  // MoE models
};

template <class T>
struct ModelParameters {
  T embedding;                             // [V_local,H]: vocabulary_part()
  std::vector<LayerParameters<T>> layers;  // [L]
  T final_norm;                            // [H]
  T head;                                  // [V_local,H]; the embedding when tied
};

// What a training microbatch is computed with.
struct MicrobatchTraining {
  double token_scale = 1;  // 1 / predicted tokens of the global batch: the one place where the loss is averaged
  RouterTraining router;
  Recompute recompute = Recompute::none;
  bool fresh_gradients = false;   // gradients = instead of +=; with one microbatch and chunk, as GradientMemory
  bool overlap_dispatch = false;  // with EP > 1: half of the rows travel while the other half's experts compute
};

// Result of some microbatches: what this rank's chunks add to it. Under pipeline parallelism everything but `tokens` is
// to be summed over the stages; under context parallelism `language` and `tokens` are those of this rank's tokens, the
// rest is that of the whole microbatches.
struct MicrobatchLosses {
  double language = 0;        // Σ over predicted tokens of -log p(target)
  std::int64_t tokens = 0;    // predicted tokens, the same on every stage
  double balance = 0, z = 0;  // sums of the microbatches' unscaled losses (0 for a dense model)
  RoutingStatistics routing;  // sums; rows of other stages' layers are 0
};

class Model {
 public:
  // The parameters of this rank, without making them; all of the model's with Groups::single().
  static std::vector<ParameterSpec> declare(const ModelConfig& config, const Groups& groups,
                                            const PipelineOptions& pipeline = {});
  // Declares this rank's parameters and allocates them (zero): initialise, then call weights_changed().
  Model(const ModelConfig& config, const Groups& groups, Ops& ops, DType compute, const PipelineOptions& pipeline = {},
        const ShardOptions& shards = {});
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }
  Ops& ops() const { return ops_; }
  // sharded_masters() were written: makes the weights from them and invalidates packed copies; gradients of bf16
  // weights become 0. Collective over the replicas.
  void weights_changed();
  // What this rank keeps of the weights was updated: invalidates packed copies and, under a sharded optimizer, starts
  // to gather the weights from their owners, bucket after bucket, in the order of forward. Forward waits for each
  // layer's.
  void weights_updated();
  // Waits for the weights of the parameters whose names start with `prefix`, all with an empty one.
  void wait_for_weights(const std::string& prefix);

  // Called as backward finishes gradients, from the last layers of a chunk to the first; every range once.
  using GradientsReady = std::function<void(const FlatRange&)>;
  // Forward and backward of all microbatches in the order of the pipeline's schedule (without pipeline: one after
  // another); gradients +=, or = where they are fresh. `ready` belongs to the last backward of each chunk. Collective
  // over ep and pp. The two copies of tied embeddings of a pipeline get the sum of both gradients: there the gradients
  // must be fresh or zero before.
  MicrobatchLosses forward_backward(std::span<const Microbatch> batches, const MicrobatchTraining& training,
                                    const GradientsReady& ready = {});
  MicrobatchLosses forward_backward(const Microbatch& batch, const MicrobatchTraining& training,
                                    const GradientsReady& ready = {}) {
    return forward_backward(std::span(&batch, 1), training, ready);
  }
  // Forward only: the language-model loss and the choices of experts. If losses is not empty it gets each token's loss,
  // acc [T], on the last stage. Collective over ep and pp; a stage doesn't wait for the next one to finish.
  MicrobatchLosses evaluate(const Microbatch& batch, const Tensor& losses = {});
  // Forward only: logits [T,V] acc (=) of every place, on the last stage. `batch.targets` may be empty. Collective as
  // evaluate.
  void logits(const Microbatch& batch, const Tensor& logits);
  // Forward with a look at every layer's output: "embedding", "layers.3.attention", ..., "head" for the first one
  // of this rank with a NaN or an infinity, or "" where all are finite or the input from the stage before is not.
  // Collective over ep and pp.
  std::string first_non_finite(const Microbatch& batch);
  // The most chunks of microbatches whose activations were alive at once so far; most_alive() is its bound, asserted.
  std::int64_t most_alive() const { return static_cast<std::int64_t>(alive_.size()); }
  // The most rows that this rank's experts got so far; `chunk` is the mean over what most_alive() counts, without those
  // of full recompute, which keep no rows.
  ExpertLoad expert_load() const;
  // Bytes of activation memory at the peak so far.
  std::int64_t peak_activation_bytes() const;
  // Times that activation memory was asked from the system so far: constant once steps are alike.
  std::int64_t system_allocations() const;

 private:
  friend class Decoder;
  using Look = std::function<void(const std::string& place, const Tensor& output)>;
  struct LayerSaved {
    AttentionSaved attention;
    MlpSaved mlp;
    MoeSaved moe;
    Tensor input;  // full recompute
  };
  // What one chunk keeps of a microbatch from forward to backward.
  struct Alive {
    explicit Alive(Device& device) : saved(device), routed(device) {}
    void reset() { saved.reset(), routed.reset(); }
    bool in_use = false;
    bool borrows = false;  // the memory of gradients
    std::int64_t microbatch = 0;
    int chunk = 0;
    Arena saved, routed;
    Microbatch batch;                // on the device
    std::vector<LayerSaved> layers;  // [L]
    Tensor output;                   // of the last layer: x + delta, goes to the next stage
    Tensor sum, inv_rms, normed;     // the final norm's
    RoutingStatistics routing;
    double most_load = 0;  // ExpertLoad::chunk of the microbatches so far
    std::vector<std::unique_ptr<Request>> sent;
  };
  // A gradient on its way from stage to stage, with the shares of all layers (see RoutingStatistics).
  struct TravellingGradient {
    explicit TravellingGradient(Device& device) : memory(device) {}
    Arena memory;
    std::vector<double> shares;
    std::vector<std::unique_ptr<Request>> sent;
  };
  // A bucket of weights on its way from its owners.
  struct ArrivingWeights {
    FlatRange range;
    std::unique_ptr<Request> request;
  };
  template <class Get>
  ModelParameters<Tensor> bind(Get get) const;

  // model.cpp: layers.
  // Part `part` of a microbatch's layers, which the backend may record (Ops::repeat).
  void repeat(Context& context, std::uint64_t part, const std::function<void()>& work);
  Stream layer_forward(Context& context, std::size_t layer, const Microbatch& batch, const RouterTraining& training,
                       const Stream& in, const Tensor& delta, LayerSaved& saved, RoutingStatistics& routing,
                       const Look& look = {});
  Stream layers_forward(Context& context, const Chunk& chunk, const Microbatch& batch, const RouterTraining& training,
                        Stream in, Alive& state, const Look& look);
  void final_norm_forward(Context& context, const Stream& in, Alive& state);
  void layer_backward(Context& context, std::size_t layer, const Microbatch& batch, const RouterTraining& training,
                      Alive& state, const Tensor& g);
  double head_backward(Context& context, const Microbatch& batch, double token_scale, Alive& state, const Tensor& g);
  void report_ready(const std::string& prefix, const GradientsReady& ready) const;
  bool travels(BalanceScope scope) const;

  // Rows of the residual stream on this rank: T/TP. Throws Error{usage} unless TP divides T.
  std::int64_t local_rows(const Microbatch& batch) const;

  // pipeline.cpp: chunks, their memory and messages.
  Communicator& stages() const { return groups_[GroupKind::pp]; }
  Alive& acquire(std::int64_t microbatch, int chunk, std::int64_t promised);
  Alive& find(std::int64_t microbatch, int chunk);
  void release(Alive& state);
  TravellingGradient& next_gradient();
  Arena& routed(Alive& state) const;
  void clear_gradients();
  // Lets what was sent make progress while this stage computes.
  void progress();
  Context context(Alive& state, Recompute recompute);
  // Values and, if not empty, shares to or from the next (+1) or the previous (-1) stage.
  std::vector<std::unique_ptr<Request>> send(const Tensor& values, std::vector<double>& shares, int direction) const;
  void receive(const Tensor& values, std::vector<double>& shares, int direction) const;
  // What a chunk starts with: the embedding, or what the stage before sends (x + delta, and the shares up to there).
  Stream chunk_input(Context& context, const Chunk& chunk, const Microbatch& batch, Alive& state, const Look& look);
  // What comes after a chunk's layers: the final norm, or x + delta and the shares go to the next stage.
  void chunk_output(Context& context, const Chunk& chunk, const Stream& out, Alive& state, const Look& look);
  void chunk_forward(Context& context, const Chunk& chunk, const Microbatch& batch, const RouterTraining& training,
                     Alive& state, const Look& look = {});
  void chunk_backward(Context& context, const Chunk& chunk, const MicrobatchTraining& training, Alive& state,
                      MicrobatchLosses& losses, const GradientsReady& ready);
  MicrobatchLosses no_losses() const;
  // Forward of every chunk of this rank, and finish(context, chunk, state) after each.
  template <class Finish>
  void forward_only(const Microbatch& batch, Finish finish);
  // Whether the first and the last stage each have a copy of one matrix.
  bool shares_embedding() const { return config_.tie_embeddings && stages().size() > 1; }

  ModelConfig config_;
  const Groups& groups_;
  Ops& ops_;
  DType compute_;
  PipelineOptions pipeline_;
  std::vector<Chunk> chunks_;
  std::vector<AttentionLayer> attention_;
  std::vector<MlpLayer> mlp_;
  std::vector<MoeLayer> moe_;
  Embedding embedding_;
  LmHead head_;
  ParameterStore store_;
  std::optional<GradientMemory> gradient_memory_;  // of a single chunk
  std::vector<ArrivingWeights> arriving_;
  ModelParameters<Tensor> weights_, gradients_;
  std::vector<std::unique_ptr<Alive>> alive_;
  std::deque<TravellingGradient> travelling_;  // kGradientBuffers
  std::size_t next_gradient_ = 0;
  double most_layer_load_ = 0;
  Arena scratch_, recompute_;
};

}  // namespace dropcycle
