// Ops: the table of tensor operations, chosen once at start-up (`reference`, `cpu`, `cuda`), so that one binary
// compares backends. All tensors are contiguous and row-major, and live on the backend's device.
//
// Types. "compute" is the type of weights and activations: f64, f32 or bf16. "acc" is accumulator_of(compute): f64
// for f64, else f32. Products take compute and accumulate in acc; statistics, gradients of parameters, losses and
// everything of the router are acc. Norm and router weights are acc, and so is the residual stream with its gradient:
// what every layer adds to must not be rounded by each.
//
// Writing. Gradients of parameters are accumulated (+=); everything else is overwritten (=). Each signature says which.
// Reductions run in an order that depends on the sizes only, never on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "dropcycle/core/random.hpp"
#include "dropcycle/core/tensor.hpp"
#include "dropcycle/device/device.hpp"

namespace dropcycle {

// A weight matrix and its version, which the optimizer advances: a backend may keep a copy in its own layout, keyed
// on (address, version), so that packing happens once a step and no layer knows. Versions come from
// next_weight_version(), so that other weights at the address of freed ones are never mistaken for them. Version 0 (a
// weight that nobody tracks): no copy outlives the call.
struct Weight {
  Tensor tensor;
  std::uint64_t version = 0;
};

// 1, 2, 3, ...: never the same twice in a process. Thread-safe.
std::uint64_t next_weight_version();

struct AttentionShape {
  std::int64_t batch = 1;      // B
  std::int64_t sequence = 1;   // S: queries of each sequence
  std::int64_t heads = 1;      // Nq
  std::int64_t kv_heads = 1;   // Nkv; query head h reads key/value head h / (Nq / Nkv)
  std::int64_t head_size = 1;  // D
  std::int64_t keys = 0;       // keys and values of each sequence; 0: as many as queries
  std::int64_t tokens() const { return batch * sequence; }
  std::int64_t key_count() const { return keys > 0 ? keys : sequence; }
  std::int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_size; }
};

// Columns of a matrix [rows, width] from column `first` on; how many, the operation knows.
struct Columns {
  Tensor matrix;
  std::int64_t first = 0;
};

// Where the heads lie: Nq D columns with a row per query, Nkv D columns with a row per key, and the same of values.
struct AttentionHeads {
  Columns q, k, v;
};

// Query, key and value heads side by side in the rows of qkv [T, (Nq + 2 Nkv) D].
inline AttentionHeads packed_heads(const AttentionShape& shape, const Tensor& qkv) {
  const std::int64_t q = shape.heads * shape.head_size, kv = shape.kv_heads * shape.head_size;
  return {{qkv, 0}, {qkv, q}, {qkv, q + kv}};
}

// A query sees the keys first_key to last_key of its sequence. i32 [T]; empty: 0, and keys - sequence + i for query i
// of a sequence, so that the queries are the last of the keys' places.
struct AttentionMask {
  Tensor first_key, last_key;
};

enum class RouterMode {
  topk_softmax,  // softmax over the K chosen logits (the paper's Eq. 3)
  softmax_topk,  // softmax over all E logits, then the K largest, not renormalised
};

struct AdamwArguments {
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0;
  double gradient_scale = 1;  // clipping factor, applied to the gradient first
  std::int64_t step = 1;      // 1 at the first update (bias correction)
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual std::string_view name() const = 0;
  // Where all tensors live.
  virtual Device& device() const { return host_device(); }
  // Runs work(), which asks for the same operations on the same memory whenever `key` comes again, as long as sizes
  // stay. A backend may record it, and calls work() twice in a call where it does. work() neither waits for the device
  // nor speaks to other ranks.
  virtual void repeat(std::uint64_t key, const std::function<void()>& work) {
    static_cast<void>(key);
    work();
  }

  // ---- Matrix products. Weights are [O, I], as in a checkpoint.
  // y[T,O] = x[T,I] wᵀ.  y is compute or acc.
  virtual void linear(const Tensor& x, const Weight& w, const Tensor& y) = 0;
  // dx[T,I] = dy[T,O] w.  dx is compute or acc.
  virtual void linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) = 0;
  // dw[O,I] += dyᵀ x.  dw is acc.
  virtual void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) = 0;
  // The same for E weights w[E,O,I]: rows offsets[e] to offsets[e+1] belong to expert e; offsets has E+1 values, the
  // last one is the number of rows. An expert may have no row.
  virtual void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                              const Tensor& y) = 0;
  virtual void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                                 const Tensor& dx) = 0;
  virtual void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                                 const Tensor& dw) = 0;

  // ---- Elementwise.
  virtual void fill_zero(const Tensor& x) = 0;
  // out = x, converted to out's type (rounded to nearest even).
  virtual void convert(const Tensor& x, const Tensor& out) = 0;
  // `width` columns of out = those of x, row by row, converted to out's type.
  virtual void copy_columns(const Columns& x, const Columns& out, std::int64_t width) = 0;
  // y = a + b; y may be a or b.
  virtual void add(const Tensor& a, const Tensor& b, const Tensor& y) = 0;
  // y[i] = x[i] * (1 + amplitude * (2 u(first + i) - 1)), u = stream.uniform: the router's input jitter. It is its own
  // adjoint. y may be x.
  virtual void jitter(const Tensor& x, const RandomStream& stream, std::uint64_t first, double amplitude,
                      const Tensor& y) = 0;

  // out[i] = mean + standard_deviation normal(first + i) of the stream (core/random.hpp), rounded once: the same bits
  // on every backend.
  virtual void fill_normal(const RandomStream& stream, std::uint64_t first, double mean, double standard_deviation,
                           const Tensor& out) = 0;

  // ---- Embedding. tokens i32 [T]; negative: a token whose row of w another rank holds.
  // y[t] = w[tokens[t]]; 0 for a negative token.  y is acc.
  virtual void embedding(const Tensor& tokens, const Tensor& w, const Tensor& y) = 0;
  // dw[tokens[t]] += dy[t], in the order of t, without negative tokens.  dw is acc.
  virtual void embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) = 0;

  // ---- RMSNorm (Zhang and Sennrich, 2019), with the residual addition before it.
  // sum = x + delta (delta may be empty: then sum = x, not written, and `sum` must be empty too).
  // inv_rms[t] = 1 / sqrt(mean_h sum[t,h]² + epsilon);  y = sum * inv_rms * w.  y [T,H] compute; x, delta, sum [T,H],
  // w [H], inv_rms [T] acc.
  virtual void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon, const Tensor& sum,
                            const Tensor& y, const Tensor& inv_rms) = 0;
  // dx = dresidual + (dy w) inv_rms - x inv_rms³ mean_h(dy w x);  dw += Σ_t dy x inv_rms.  x is the norm's input (sum).
  // dresidual may be empty (zero) and may be dx. All acc.
  virtual void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                                 const Tensor& dresidual, const Tensor& dx, const Tensor& dw) = 0;

  // ---- Rotary positions (Su et al., 2021; the half-split pairing (i, i + D/2) of Llama).
  // In place on the first `rotated_heads` heads of each row of x [T, heads*D]: with angle a = positions[t] *
  // inverse_frequencies[i]: (x_i, x_{i+D/2}) -> (x_i cos a - x_{i+D/2} sin a, x_{i+D/2} cos a + x_i sin a).
  // `direction` +1 rotates (forward), -1 rotates back (backward). positions i32 [T]; inverse_frequencies f64
  // [D/2], in the host's memory.
  virtual void rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies, std::int64_t head_size,
                    std::int64_t rotated_heads, int direction) = 0;

  // ---- Causal grouped-query attention, scale 1/sqrt(D), blocked: S×S is never in memory.
  // x: T queries of B sequences, and B * keys keys and values.  out [T, Nq D]; lse acc [T, Nq] (or empty): log-sum-exp
  // of the scaled scores.
  virtual void attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                         const Tensor& out, const Tensor& lse) = 0;
  // dx, laid out in any matrices, from dout, recomputing the probabilities from lse. dx.q is compute; dx.k and dx.v are
  // compute or acc, and may have other strides than x.
  virtual void attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                                  const Tensor& out, const Tensor& lse, const Tensor& dout,
                                  const AttentionHeads& dx) = 0;

  // ---- SwiGLU (the paper's Eq. 1): gate_up [T,2F] holds gate then up; y = silu(gate) * up.
  virtual void swiglu(const Tensor& gate_up, const Tensor& y) = 0;
  // dgate_up from dy; also y again (recomputed) unless y is empty. dgate_up may take gate_up's place, and y dy's.
  virtual void swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) = 0;

  // ---- Router. Everything in acc but x.
  // logits[T,E] = x[T,H] w[E,H]ᵀ.
  virtual void router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) = 0;
  // dx += dlogits w;  dw += dlogitsᵀ x.
  virtual void router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                                      const Tensor& dw) = 0;
  // experts i32 [T,K]: the K largest logits, descending, ties to the lower index. weights[T,K]: by mode.
  // probabilities[T,E]: softmax over all E (balancing loss). lse[T]: log-sum-exp of the logits (z-loss).
  virtual void route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
                     const Tensor& probabilities, const Tensor& lse) = 0;
  // dlogits = (dweights through `mode`) + p_e (a_e - Σ_j p_j a_j) + 2 z lse p_e, with p the probabilities,
  // a = dprobabilities [E] (the same for every token; may be empty) and z the scaled z-loss coefficient.
  virtual void route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights,
                              const Tensor& probabilities, const Tensor& lse, const Tensor& dweights,
                              const Tensor& dprobabilities, double z, const Tensor& dlogits) = 0;
  // out[E] += Σ_t x[t,e].
  virtual void sum_rows(const Tensor& x, const Tensor& out) = 0;

  // ---- Dispatch by permutation.
  // Pairs (t, k) as rows sorted by experts[t,k] [T,K], then by t and k: counts i32 [E] rows go to each expert, row i is
  // of token token_of_row[i] i32 [T K], and slots[t,k] i32 [T,K] is the row of (t, k).
  virtual void sort_rows(const Tensor& experts, const Tensor& counts, const Tensor& token_of_row,
                         const Tensor& slots) = 0;
  // out[i] = x[index[i]]; index i32 [M].
  virtual void gather_rows(const Tensor& x, const Tensor& index, const Tensor& out) = 0;
  // y[t] = Σ_k weights[t,k] z[slots[t,k]] with fp32 sums in the order of k; weights may be empty (ones).
  // slots i32 [T,K]. y is compute or acc.
  virtual void combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) = 0;
  // dz[slots[t,k]] = weights[t,k] dy[t];  dweights[t,k] = Σ_h dy[t,h] z[slots[t,k],h].  dy is acc.
  virtual void combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights,
                                const Tensor& dz, const Tensor& dweights) = 0;

  // ---- Cross-entropy on a block of rows. logits [T,V] acc, targets i32 [T] (negative: the row counts for nothing).
  // losses[t] = logsumexp(logits[t]) - logits[t, target] (0 for ignored rows);
  // dlogits = scale * (softmax - onehot), compute, unless empty.
  virtual void cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                             const Tensor& dlogits) = 0;

  // The same where each of R ranks holds some columns of the logits: this one the columns [first, first + V_local), at
  // least one.
  // part acc [T,3]: largest logit m, Σ exp(logit - m), and the target's logit (0 where another rank holds it).
  virtual void cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first,
                                  const Tensor& part) = 0;
  // From the ranks' parts [R,T,3]: log-sum-exp = M + log Σ_r s_r exp(m_r - M) with M = max m_r;  losses and this rank's
  // columns of dlogits (unless empty) as above.
  virtual void cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets,
                                      std::int64_t first, double scale, const Tensor& losses,
                                      const Tensor& dlogits) = 0;

  // ---- Optimizer, on flat arrays.
  // Masters (f32) into their halves (MasterHalves): weight bf16, low i16 unless empty; and back.
  virtual void split_masters(const Tensor& masters, const Tensor& weight, const Tensor& low) = 0;
  virtual void join_masters(const Tensor& weight, const Tensor& low, const Tensor& masters) = 0;
  // Σ x², accumulated in double.
  virtual double squared_norm(const Tensor& x) = 0;
  // AdamW (Loshchilov and Hutter, 2019): g = gradient_scale * gradient; m = β1 m + (1-β1) g; v = β2 v + (1-β2) g²;
  // master -= lr (m̂ / (sqrt(v̂) + ε) + weight_decay master). With a weight (bf16), it and master (i16) are the two
  // halves of f32 masters (MasterHalves); with an empty one master is acc.
  virtual void adamw(const AdamwArguments& arguments, const Tensor& gradient, const Tensor& master, const Tensor& m,
                     const Tensor& v, const Tensor& weight) = 0;
};

struct OpsOptions {
  int threads = 0;            // cpu. 0: as many as the process may run on
  int local_rank = 0;         // cuda: the GPU's number on this node
  bool graphs = false;        // cuda: record what repeat() runs
  bool deterministic = true;  // cuda: attention's backward pass adds in a fixed order, which costs time and memory
};

// backend: "reference" (plain loops; f64 and f32, and bf16 with f32 sums) or "cpu" (oneDNN and vectorised kernels;
// f32 and bf16) or "cuda" (cuBLASLt, cuDNN and own kernels; f32 and bf16). Throws Error{usage} for another name, and
// where there is no such device. While a profile is active in this thread
// (core/profile.hpp), every operation of the backend is a span of it. With DROPCYCLE_ISA=baseline|avx2|avx512|native
// (the default) the cpu backend keeps to these instructions.
std::unique_ptr<Ops> make_ops(std::string_view backend, const OpsOptions& options = {});

// Whether this processor multiplies bf16 natively (AVX-512 BF16 or AMX).
bool has_native_bf16();

}  // namespace dropcycle
