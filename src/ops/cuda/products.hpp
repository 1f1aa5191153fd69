// Matrix products of the CUDA backend: cuBLASLt, and cublasGemmGroupedBatchedEx for many small experts.
//
// Both libraries are column-major: a row-major matrix [R,C] is to them the matrix [C,R] with leading dimension C, so
// that y[T,O] = x[T,I] wᵀ becomes yᵀ[O,T] = wᵀ'[O,I] xᵀ[I,T] with w transposed. All operands and results are
// contiguous, at addresses that are multiples of 16 bytes at the start of each tensor.
//
// Types. Operands are bf16 or f32, both the same. Sums are f32 (CUBLAS_COMPUTE_32F: no TF32 for f32). Results are
// bf16 or f32; gradients of weights are f32 and accumulate (beta = 1).
//
// Algorithms. The first product of a key (rows rounded up to a power of two and at least 64, the other sizes, types,
// transposes, alignment of the expert's rows) asks the heuristic once, with a workspace limit of 32 MiB a stream. After
// that nothing is asked and nothing is allocated. A cached algorithm serves all row counts of its bucket: cuBLASLt
// checks it against the sizes of each call, and where it doesn't fit those sizes get a heuristic of their own.
//
// Grouped products. Experts with rows run as single products on four streams, each after the work that the device's
// stream had when the call was made; the device's stream goes on when all have ended. Where the operands are bf16, the
// experts are more than 16 and have on average fewer than 256 rows (one product then can't fill the GPU), they are one
// call of cublasGemmGroupedBatchedEx instead, a group for each expert that has rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "dropcycle/core/tensor.hpp"
#include "dropcycle/device/cuda.hpp"

namespace dropcycle::cuda {

class Products {
 public:
  // The device outlives it. Throws Error{internal} with cuBLAS's own words where a call fails.
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
