// Linear layers, products grouped by expert. Where the processor has instructions for bf16, products of bf16 are our
// own (by matrix units products_amx.cpp, else by vectors products_bf16.cpp) and take weights as they lie. Everything
// else, fp32 (bf16 too where it has no instructions) and odd sizes, is Matmul's on packed copies of the weights.
//
// Memory: under Matmul every weight has up to two packed copies of its own size (one for forward, one for backward),
// written anew when its version changes and kept until the backend ends; fp32 ones where bf16 has no instructions.
#pragma once

#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/ops/ops.hpp"
#include "matmul.hpp"

namespace dropcycle::cpu {

// Element type of a tensor; throws Error{internal} unless f32 or bf16.
Type type_of(const Tensor& tensor);

// Grow-only memory for one purpose.
class Workspace {
 public:
  void* bytes(std::int64_t count) {
    if (count > buffer_.size_bytes()) buffer_ = Buffer(count + count / 4);
    return buffer_.data();
  }
  template <class T>
  T* array(std::int64_t count) {
    return static_cast<T*>(bytes(count * static_cast<std::int64_t>(sizeof(T))));
  }

 private:
  Buffer buffer_;
};

class Products {
 public:
  Products(InstructionSet set, const Kernels& kernels, const Bf16Kernels& bf16_kernels);

  // Rows offsets[e] to offsets[e+1] of `in` times weight e: `product` is forward (in = x, out = y) or backward
  // (in = dy, out = dx). A plain linear layer is a group of one.
  void multiply(Product product, const Tensor& in, std::span<const std::int64_t> offsets, const Weight& w,
                const Tensor& out);
  // dw[e] += dy[rows of e]ᵀ x[rows of e].
  void gradient(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets, const Tensor& dw);

 private:
  struct Packed {
    std::uint64_t version = 0;
    std::int64_t stride_bytes = 0;  // from expert to expert
    Buffer memory;
  };
  struct Sizes {
    std::int64_t experts, outputs, inputs;
  };
  const Packed& packed(Product product, const Weight& w, const Sizes& sizes);
  // Whether our own product takes them.
  bool takes_bf16(const Tensor& in, const Tensor& other, std::int64_t columns, std::int64_t depth) const;
  void multiply_bf16(Product product, const Tensor& in, std::span<const std::int64_t> offsets, const Tensor& weights,
                     const Tensor& out);
  void gradient_bf16(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets, const Tensor& dw);
  void run_bf16(const Bf16Sizes& sizes);
  const void* product_operand(const Tensor& tensor, Workspace& workspace);

  Matmul matmul_;
  bool native_bf16_;
  bool shares_out_;  // oneDNN shares a product out among threads without cutting its sums
  const Kernels& kernels_;
  const Bf16Kernels& bf16_kernels_;
  std::map<std::tuple<const void*, Product, std::int64_t, std::int64_t, std::int64_t>, Packed> packed_;
  Workspace first_, second_, result_, converted_;
  std::vector<MatmulTask> tasks_;
  std::vector<Bf16Task> bf16_tasks_;
  Workspace panels_;
};

}  // namespace dropcycle::cpu
