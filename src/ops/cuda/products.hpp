// Matrix products of the CUDA backend: cuBLASLt, and cublasGemmGroupedBatchedEx for many small experts.
//
// Both libraries are column-major: a row-major matrix [R,C] is to them the matrix C x R with leading dimension C. With
// ' for that reading, and so with operands swapped:
//   y[T,O] = x wᵀ     is  y'[O,T]  = (w'[I,O])ᵀ x'[I,T]
//   dx[T,I] = dy w    is  dx'[I,T] = w'[I,O] dy'[O,T]
//   dw[O,I] += dyᵀ x  is  dw'[I,O] += x'[I,T] (dy'[O,T])ᵀ
// No leading dimension depends on T, and the columns of T are never the contiguous ones: what holds for one number of
// rows holds for all.
//
// Types. Operands are bf16 or f32, both the same. Sums are f32 (CUBLAS_COMPUTE_32F: no TF32 for f32). Results are
// bf16 or f32; gradients of weights are f32 and accumulate (beta = 1).
//
// Algorithms. The first product of a key (which of the three; T rounded up to a power of two and at least 64; O, I,
// types, alignments up to 16 bytes) asks the heuristic once, for the rounded T and with a workspace of at most 32 MiB.
// The choice depends on the key alone, not on what came before, so that a resumed run adds in the same order. After
// that nothing is asked and nothing is allocated. Where cuBLASLt refuses the algorithm for the exact T, these sizes get
// a key of their own.
//
// Grouped products. Where operands and results are bf16, O and I are multiples of 8, and more than 8 experts have on
// average fewer than 256 rows (one product can't fill 132 processors then), all experts are one call of
// cublasGemmGroupedBatchedEx, a group for each that has rows. Else each expert with rows is a product of its own, in
// turn on four streams: they start after the work that the device's stream had, and its later work waits for them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "dropcycle/core/tensor.hpp"
#include "dropcycle/device/cuda.hpp"

namespace dropcycle::cuda {

class Products {
 public:
  // Takes 32 MiB of workspace for the device's stream and for each of the four. The device outlives it. Throws
  // Error{internal} with the call and cuBLAS's status where a call fails.
  explicit Products(CudaDevice& device);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  // As in Ops (ops/ops.hpp): same shapes, types and rules of writing. Everything is ordered on the device's stream.
  // y[T,O] = x[T,I] wᵀ
  void linear(const Tensor& x, const Tensor& w, const Tensor& y);
  // dx[T,I] = dy[T,O] w
  void linear_dx(const Tensor& dy, const Tensor& w, const Tensor& dx);
  // dw[O,I] += dyᵀ x
  void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw);
  // Rows offsets[e] to offsets[e + 1] belong to w[e]; `offsets` are the host's.
  void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Tensor& w, const Tensor& y);
  void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Tensor& w, const Tensor& dx);
  void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets, const Tensor& dw);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dropcycle::cuda
