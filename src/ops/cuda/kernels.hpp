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
void add(cudaStream_t stream, const Tensor& a, const Tensor& b, const Tensor& y);

void swiglu(cudaStream_t stream, const Tensor& gate_up, const Tensor& y);
void swiglu_backward(cudaStream_t stream, const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up,
                     const Tensor& y);

}  // namespace dropcycle::cuda
