// The attention layer of Llama: RMSNorm, grouped-query causal attention with rotary positions, output projection.
//
//   sum = x + delta;  n = rms_norm(sum);  [q|k|v] = n W_qkvᵀ;  q, k rotated;  o = attention(q, k, v);  delta' = o W_oᵀ
//
// T = B*S rows; H hidden size; Nq query heads, Nkv key/value heads of D elements.
//
// Tensor parallelism (tensor_parallel.hpp): W_qkv is column-parallel, W_o row-parallel. A rank holds Nq_local = Nq/TP
// query heads and Nkv_local = max(1, Nkv/TP) key/value heads: fewer heads than ranks are held by TP/Nkv ranks each.
#pragma once

#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context.hpp"
#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {

template <class T>
struct AttentionParameters {
  T norm;    // [H]
  T qkv;     // [(Nq_local + 2 Nkv_local) D, H]: query, key and value, adjacent in memory
  T output;  // [H, Nq_local D]
};

struct AttentionSaved {
  NormSaved norm;
  Tensor qkv;       // [T, (Nq_local + 2 Nkv_local) D], rotated
  Tensor attended;  // [T, Nq_local D]
  Tensor lse;       // [T, Nq_local]
};

// Radians per position of each of a head's D/2 pairs: w_i = rope_theta^(-2i/D), then by rope_scaling
//   linear  w_i / f
//   llama3  w_i          for waves shorter than P / h,
//           w_i / f      for waves longer than P / l,
//           (1 - m) w_i / f + m w_i   between, with m = (P / wave - l) / (h - l);   wave = 2 pi / w_i
// where f = rope_factor, l and h = rope_low_ and rope_high_frequency_factor, P = rope_original_positions.
// Sources: arXiv 2306.15595 (linear), the released code of Llama 3.1 (llama3); numbers as transformers'.
std::vector<double> rope_inverse_frequencies(const ModelConfig& config);

class AttentionLayer {
 public:
  // Throws Error{internal} unless heads % kv_heads == 0 and head_size is even, Error{usage} unless TP divides the
  // heads, and either TP divides the key/value heads or they divide TP.
  AttentionLayer(const ModelConfig& config, const Groups& groups);
  std::int64_t heads() const { return heads_; }        // Nq_local
  std::int64_t kv_heads() const { return kv_heads_; }  // Nkv_local

  // Appends norm, query, key, value and output under `prefix` ("layers.3.").
  void declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const;

  // Returns {sum, delta'}; delta' is written into `delta` [T_local,H], which may be in.delta.
  Stream forward(Context& context, const AttentionParameters<Tensor>& w, const Microbatch& batch, const Stream& in,
                 const Tensor& delta, AttentionSaved& saved) const;
  // g [T_local,H]: on entry the gradient of sum + delta', on return that of x + delta (=). dw: +=.
  void backward(Context& context, const AttentionParameters<Tensor>& w, const AttentionParameters<Tensor>& dw,
                const Microbatch& batch, const AttentionSaved& saved, const Tensor& g) const;
  // Once a step, when all microbatches have added to dw: sums the gradient of a key/value head over the ranks of tp
  // that hold it.
  void sum_shared_heads(Context& context, const AttentionParameters<Tensor>& dw) const;
  // One sequence with a cache: `in` holds this rank's rows of the n newest, keys and values [capacity, Nkv_local D]
  // hold `past` places and get n more. Saves nothing.
  Stream forward_cached(Context& context, const AttentionParameters<Tensor>& w, const Tensor& positions,
                        const Stream& in, const Tensor& delta, const Tensor& keys, const Tensor& values,
                        std::int64_t past) const;

 private:
  AttentionShape shape(const Microbatch& batch) const;

  ModelConfig config_;
  std::int64_t heads_, kv_heads_;            // of this rank
  std::int64_t sharers_, first_kv_head_;     // ranks that hold its key/value heads; the first of these heads
  Part query_part_, kv_part_;                // rows of the weights
  bool owner_;                               // whether it is the first of the ranks that hold its key/value heads
  std::vector<double> inverse_frequencies_;  // [D/2]
  Tensor inverse_frequencies_view() const;
};

}  // namespace dropcycle
