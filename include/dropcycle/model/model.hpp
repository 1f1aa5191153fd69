// Dense Llama and Mixtral-style MoE language models: embedding, L layers of attention and MLP or MoE, norm, head.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dropcycle/layers/attention.hpp"
#include "dropcycle/layers/lm_head.hpp"
#include "dropcycle/layers/mlp.hpp"
#include "dropcycle/layers/moe/moe.hpp"
#include "dropcycle/model/parameter_store.hpp"

namespace dropcycle {

template <class T>
struct LayerParameters {
  AttentionParameters<T> attention;
  MlpParameters<T> mlp;  // dense models
  MoeParameters<T> moe;  // MoE models
};

template <class T>
struct ModelParameters {
  T embedding;  // [V,H]
  std::vector<LayerParameters<T>> layers;
  T final_norm;  // [H]
  T head;        // [V,H]; the embedding when tied
};

// What a training microbatch is computed with.
struct MicrobatchTraining {
  double token_scale = 1;  // 1 / predicted tokens of the global batch: the one place where the loss is averaged
  RouterTraining router;
  Recompute recompute = Recompute::none;
};

// Result of one microbatch.
struct MicrobatchLosses {
  double language = 0;        // Σ over predicted tokens of -log p(target)
  std::int64_t tokens = 0;    // predicted tokens
  double balance = 0, z = 0;  // unscaled losses of this microbatch (0 for a dense model)
  RoutingStatistics routing;
};

class Model {
 public:
  // The parameters of this rank, without making them; all of the model's with Groups::single().
  static std::vector<ParameterSpec> declare(const ModelConfig& config, const Groups& groups);
  // Declares this rank's parameters and allocates them (zero): initialise, then call weights_changed().
  Model(const ModelConfig& config, const Groups& groups, Ops& ops, DType compute);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }
  Ops& ops() const { return ops_; }
  // Makes the compute weights from the masters and invalidates packed copies.
  void weights_changed();

  // Called as backward finishes gradients, from the last layers to the first; every range once.
  using GradientsReady = std::function<void(const FlatRange&)>;
  // Forward and backward; gradients +=.
  MicrobatchLosses forward_backward(const Microbatch& batch, const MicrobatchTraining& training,
                                    const GradientsReady& ready = {});
  // Forward only. If losses is not empty it gets each token's loss, acc [T].
  MicrobatchLosses evaluate(const Microbatch& batch, const Tensor& losses = {});
  // Forward with a look at every layer's output: "embedding", "layers.3.attention", ..., "head" for the first one
  // with a NaN or an infinity, or "" where all are finite.
  std::string first_non_finite(const Microbatch& batch);
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
  struct Forward {
    std::vector<LayerSaved> layers;
    Tensor sum, inv_rms, normed;  // the final norm's
    RoutingStatistics routing;
  };
  template <class Get>
  ModelParameters<Tensor> bind(Get get) const;

  Context start(Recompute recompute);
  Forward forward(Context& context, const Microbatch& batch, const RouterTraining& training, const Look& look = {});
  Stream layer_forward(Context& context, std::size_t layer, const Microbatch& batch, const RouterTraining& training,
                       const Stream& in, const Tensor& delta, LayerSaved& saved, RoutingStatistics& routing,
                       const Look& look = {});
  void layer_backward(Context& context, std::size_t layer, const Microbatch& batch, const RouterTraining& training,
                      Forward& state, const Tensor& g);
  MicrobatchLosses summarise(const Microbatch& batch, const Tensor& losses, BalanceScope scope, Forward& state) const;
  void report_ready(const std::string& prefix, const GradientsReady& ready) const;

  ModelConfig config_;
  const Groups& groups_;
  Ops& ops_;
  DType compute_;
  std::vector<AttentionLayer> attention_;
  std::vector<MlpLayer> mlp_;
  std::vector<MoeLayer> moe_;
  LmHead head_;
  ParameterStore store_;
  ModelParameters<Tensor> weights_, gradients_;
  Arena saved_, scratch_, recompute_;
};

}  // namespace dropcycle
