// The attention layer of Llama: RMSNorm, grouped-query causal attention with rotary positions, output projection.
//
//   sum = x + delta;  n = rms_norm(sum);  [q|k|v] = n W_qkvᵀ;  q, k rotated;  o = attention(q, k, v);  delta' = o W_oᵀ
//
// T = B*S rows; H hidden size; Nq query heads, Nkv key/value heads of D elements.
#pragma once

#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/layers/context.hpp"
#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {

template <class T>
struct AttentionParameters {
  T norm;    // [H]
  T qkv;     // [(Nq + 2 Nkv) D, H]: query, key and value, adjacent in memory
  T output;  // [H, Nq D]
};

struct AttentionSaved {
  NormSaved norm;
  Tensor qkv;       // [T, (Nq + 2 Nkv) D], rotated
  Tensor attended;  // [T, Nq D]
  Tensor lse;       // [T, Nq]
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
  // Throws Error{internal} unless heads % kv_heads == 0 and head_size is even.
  explicit AttentionLayer(const ModelConfig& config);

  // Appends norm, query, key, value and output under `prefix` ("layers.3.").
  void declare(const std::string& prefix, std::vector<ParameterSpec>& specs) const;

  // Returns {sum, delta'}; delta' is written into `delta` [T,H], which may be in.delta.
  Stream forward(Context& context, const AttentionParameters<Tensor>& w, const Microbatch& batch, const Stream& in,
                 const Tensor& delta, AttentionSaved& saved) const;
  // g [T,H]: on entry the gradient of sum + delta', on return that of x + delta (=). dw: +=.
  void backward(Context& context, const AttentionParameters<Tensor>& w, const AttentionParameters<Tensor>& dw,
                const Microbatch& batch, const AttentionSaved& saved, const Tensor& g) const;
  // One sequence with a cache: `in` holds the n newest rows, keys and values [capacity, Nkv D] hold `past` places and
  // get n more. Saves nothing.
  Stream forward_cached(Context& context, const AttentionParameters<Tensor>& w, const Tensor& positions,
                        const Stream& in, const Tensor& delta, const Tensor& keys, const Tensor& values,
                        std::int64_t past) const;

 private:
  AttentionShape shape(const Microbatch& batch) const;

  ModelConfig config_;
  std::vector<double> inverse_frequencies_;  // [D/2]
  Tensor inverse_frequencies_view() const;
};

}  // namespace dropcycle
