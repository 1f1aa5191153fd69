// Own kernels of the CUDA backend: every operation of Ops (dropcycle/ops/ops.hpp has the formulas and shapes) that is
// no big product. compute is f32 or bf16, acc is f32. All tensors lie in the GPU's memory; each function asks `stream`
// for its work and returns. Sums have an order that depends on the sizes only: the same inputs give the same bits.
//
// `scratch`: kScratchBytes of the GPU's memory that the operation may overwrite, for one stream at a time.
#pragma once

#include <driver_types.h>

#include <cstdint>

#include "dropcycle/ops/ops.hpp"

namespace dropcycle::cuda {

constexpr std::int64_t kScratchBytes = 16 << 20;

void fill_zero(cudaStream_t stream, const Tensor& x);
void convert(cudaStream_t stream, const Tensor& x, const Tensor& out);
void copy_columns(cudaStream_t stream, const Columns& x, const Columns& out, std::int64_t width);
void add(cudaStream_t stream, const Tensor& a, const Tensor& b, const Tensor& y);
void jitter(cudaStream_t stream, const Tensor& x, const RandomStream& random, std::uint64_t first, double amplitude,
            const Tensor& y);
// The bits of random.fill_normal(out, first, mean, standard_deviation).
void fill_normal(cudaStream_t stream, const RandomStream& random, std::uint64_t first, double mean,
                 double standard_deviation, const Tensor& out);

void embedding(cudaStream_t stream, const Tensor& tokens, const Tensor& w, const Tensor& y);
void embedding_backward(cudaStream_t stream, void* scratch, const Tensor& dy, const Tensor& tokens, const Tensor& dw);

void add_rms_norm(cudaStream_t stream, const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon,
                  const Tensor& sum, const Tensor& y, const Tensor& inv_rms);
void rms_norm_backward(cudaStream_t stream, void* scratch, const Tensor& dy, const Tensor& x, const Tensor& w,
                       const Tensor& inv_rms, const Tensor& dresidual, const Tensor& dx, const Tensor& dw);

void rope(cudaStream_t stream, const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies,
          std::int64_t head_size, std::int64_t rotated_heads, int direction);

// Heads of 256 at most. For what cuDNN doesn't take: slower, and of any shape, mask and place.
void attention(cudaStream_t stream, const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
               const Tensor& out, const Tensor& lse);
void attention_backward(cudaStream_t stream, const AttentionShape& shape, const AttentionHeads& x,
                        const AttentionMask& mask, const Tensor& out, const Tensor& lse, const Tensor& dout,
                        const AttentionHeads& dx);

void swiglu(cudaStream_t stream, const Tensor& gate_up, const Tensor& y);
void swiglu_backward(cudaStream_t stream, const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up,
                     const Tensor& y);

void router_logits(cudaStream_t stream, void* scratch, const Tensor& x, const Tensor& w, const Tensor& logits);
void router_logits_backward(cudaStream_t stream, void* scratch, const Tensor& dlogits, const Tensor& x, const Tensor& w,
                            const Tensor& dx, const Tensor& dw);
// E is 256 at most, K 32.
void route(cudaStream_t stream, const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
           const Tensor& probabilities, const Tensor& lse);
void route_backward(cudaStream_t stream, RouterMode mode, const Tensor& experts, const Tensor& weights,
                    const Tensor& probabilities, const Tensor& lse, const Tensor& dweights,
                    const Tensor& dprobabilities, double z, const Tensor& dlogits);
void sum_rows(cudaStream_t stream, void* scratch, const Tensor& x, const Tensor& out);

// Rows i = t K + k in the order of (experts[t,k], i): slots i32 [T,K] are their places, token_of_row i32 [T K] the t of
// each place, counts i32 [E] the rows of each expert. E is 1,024 at most.
void sort_rows(cudaStream_t stream, void* scratch, const Tensor& experts, const Tensor& counts,
               const Tensor& token_of_row, const Tensor& slots);
void gather_rows(cudaStream_t stream, const Tensor& x, const Tensor& index, const Tensor& out);
void combine(cudaStream_t stream, const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y);
void combine_backward(cudaStream_t stream, const Tensor& dy, const Tensor& z, const Tensor& slots,
                      const Tensor& weights, const Tensor& dz, const Tensor& dweights);

void cross_entropy(cudaStream_t stream, const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                   const Tensor& dlogits);
void cross_entropy_part(cudaStream_t stream, const Tensor& logits, const Tensor& targets, std::int64_t first,
                        const Tensor& part);
void cross_entropy_of_parts(cudaStream_t stream, const Tensor& parts, const Tensor& logits, const Tensor& targets,
                            std::int64_t first, double scale, const Tensor& losses, const Tensor& dlogits);

// *out, in the GPU's memory, = Σ x².
void split_masters(cudaStream_t stream, const Tensor& masters, const Tensor& weight, const Tensor& low);
void join_masters(cudaStream_t stream, const Tensor& weight, const Tensor& low, const Tensor& masters);
void squared_norm(cudaStream_t stream, void* scratch, const Tensor& x, double* out);
void adamw(cudaStream_t stream, const AdamwArguments& arguments, const Tensor& gradient, const Tensor& master,
           const Tensor& m, const Tensor& v, const Tensor& weight);

}  // namespace dropcycle::cuda
