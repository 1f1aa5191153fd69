#include "dropcycle/model/communication.hpp"

namespace dropcycle {
namespace {

class StepFormula {
 public:
  StepFormula(const ModelConfig& config, const Groups& groups, const PipelineOptions& pipeline,
              const ShardOptions& shards, const StepSizes& sizes)
      : config_(config), groups_(groups), shards_(shards), sizes_(sizes), chunks_(chunks_of(config, groups, pipeline)) {
    microbatches_ = static_cast<double>(sizes.microbatches);
    hidden_ = static_cast<double>(config.hidden_size);
    compute_ = static_cast<double>(size_bytes(sizes.compute));
    acc_ = static_cast<double>(size_bytes(accumulator_of(sizes.compute)));
    forwards_ = sizes.recompute == Recompute::full ? 2 : 1;
    rows_ = static_cast<double>(sizes.micro_batch * sizes.sequence) / ranks(GroupKind::cp);
    for (const Chunk& chunk : chunks_) layers_ += static_cast<double>(chunk.last - chunk.first);
    for (const Chunk& chunk : chunks_) add_chunk(chunk);
    add_tensor_layers();
    add_context_layers();
    if (config.is_moe()) add_expert_layers();
    add_gradients(Model::declare(config, groups, pipeline));
  }
  const GroupTraffic& result() const { return traffic_; }

 private:
  double ranks(GroupKind kind) const { return static_cast<double>(groups_[kind].size()); }
  // Once a step, a collective on a tensor of so many bytes in all.
  void add(GroupKind group, Collective kind, double bytes) {
    const int size = groups_[group].size();
    if (size > 1) traffic_[group][kind] += bytes_sent(kind, size, bytes);
  }
  void add_each_microbatch(GroupKind group, Collective kind, double bytes) { add(group, kind, microbatches_ * bytes); }

  void add_chunk(const Chunk& chunk) {
    const double stream = rows_ * hidden_, local = stream / ranks(GroupKind::tp);
    if (chunk.begins) {
      add_each_microbatch(GroupKind::tp, Collective::reduce_scatter, stream * acc_);
      add_each_microbatch(GroupKind::tp, Collective::all_gather, stream * acc_);
    }
    if (chunk.ends) {
      add_each_microbatch(GroupKind::tp, Collective::all_gather,
                          stream * compute_ + 3 * ranks(GroupKind::tp) * rows_ * acc_);
      add_each_microbatch(GroupKind::tp, Collective::reduce_scatter, stream * acc_);
    }
    const double shares = config_.is_moe() ? 8 * static_cast<double>(config_.experts) : 0;
    const double message = local * acc_ + shares;
    if (!chunk.begins) add_each_microbatch(GroupKind::pp, Collective::send, message);
    if (!chunk.ends) add_each_microbatch(GroupKind::pp, Collective::send, message);
  }

  void add_tensor_layers() {
    const double split = layers_ * (config_.is_moe() ? 1 : 2), stream = rows_ * hidden_;  // attention, dense MLP
    add_each_microbatch(GroupKind::tp, Collective::all_gather, split * (forwards_ + 2) * stream * compute_);
    add_each_microbatch(GroupKind::tp, Collective::reduce_scatter, split * (forwards_ + 1) * stream * acc_);
    if (config_.kv_heads < groups_[GroupKind::tp].size()) {
      const double shared = 2 * static_cast<double>(config_.kv_heads * config_.head_size) * hidden_;
      add(GroupKind::tp, Collective::all_reduce, layers_ * shared * acc_);
    }
  }

  void add_context_layers() {
    const double local_heads = std::max(1.0, static_cast<double>(config_.kv_heads) / ranks(GroupKind::tp));
    const double whole = static_cast<double>(sizes_.micro_batch * sizes_.sequence) * 2 * local_heads *
                         static_cast<double>(config_.head_size);
    add_each_microbatch(GroupKind::cp, Collective::all_gather, layers_ * (forwards_ + 1) * whole * compute_);
    add_each_microbatch(GroupKind::cp, Collective::reduce_scatter, layers_ * whole * acc_);
  }

  void add_expert_layers() {
    const double chosen = rows_ / ranks(GroupKind::tp) * static_cast<double>(config_.experts_per_token) * hidden_;
    const double leaving = chosen * (ranks(GroupKind::ep) - 1) / ranks(GroupKind::ep);
    add_each_microbatch(GroupKind::ep, Collective::all_to_all, layers_ * 2 * (forwards_ + 1) * leaving * compute_);
    const double gathered = chosen * ranks(GroupKind::etp);
    add_each_microbatch(GroupKind::etp, Collective::all_gather, layers_ * (forwards_ + 1) * gathered * compute_);
    add_each_microbatch(GroupKind::etp, Collective::reduce_scatter, layers_ * (forwards_ + 1) * gathered * acc_);
  }

  void add_gradients(const std::vector<ParameterSpec>& specs) {
    for (const ParameterSpec& spec : specs) {
      if (spec.name != "embedding" || !config_.tie_embeddings) continue;
      add(GroupKind::embedding, Collective::all_reduce, static_cast<double>(spec.local_shape().elements()) * acc_);
    }
    const PerGroup<std::int64_t> elements = ParameterStore::elements_of(specs);
    for (const GradientGroup group : kGradientGroups) {
      const auto n = static_cast<double>(elements[group]);
      const GroupKind replicas = replicas_of(group);
      const double weight = group == GradientGroup::replicated ? acc_ : compute_;
      if (shards_.optimizer) {
        add(replicas, Collective::reduce_scatter, n * acc_);
        add(replicas, Collective::all_gather, n * weight);
      } else {
        add(replicas, Collective::all_reduce, n * acc_);
      }
    }
  }

  const ModelConfig& config_;
  const Groups& groups_;
  const ShardOptions& shards_;
  const StepSizes& sizes_;
  std::vector<Chunk> chunks_;
  double microbatches_, hidden_, compute_, acc_, forwards_, rows_, layers_ = 0;
  GroupTraffic traffic_;
};

}  // namespace

GroupTraffic step_traffic(const ModelConfig& config, const Groups& groups, const PipelineOptions& pipeline,
                          const ShardOptions& shards, const StepSizes& sizes) {
  return StepFormula(config, groups, pipeline, shards, sizes).result();
}

}  // namespace dropcycle
