#include "products.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "dropcycle/core/error.hpp"

namespace dropcycle::cpu {
namespace {

std::int64_t bytes_of(Type type) { return type == Type::bf16 ? 2 : 4; }

// Row counts of experts differ from step to step. So that a bounded number of primitives serves them all, rows are cut
// into pieces of 32, 64, ..., 1024, 1088, ... (sixteen sizes an octave), largest first, and what is left of 32 is
// padded.
constexpr std::int64_t kSmallestPiece = 32;

std::int64_t largest_piece(std::int64_t rows) {
  const auto octave = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(rows)));
  const std::int64_t grain = std::max(kSmallestPiece, octave / 16);
  return rows / grain * grain;
}

}  // namespace

Type type_of(const Tensor& tensor) {
  require(tensor.dtype == DType::f32 || tensor.dtype == DType::bf16, "the cpu backend takes f32 and bf16, not {} {}",
          name(tensor.dtype), to_string(tensor.shape));
  return tensor.dtype == DType::bf16 ? Type::bf16 : Type::f32;
}

Products::Products(InstructionSet set, const Kernels& kernels)
    : matmul_(set, has_avx512(set)), native_bf16_(multiplies_bf16()), kernels_(kernels) {}

// The tensor's memory in a type that products take: itself, or a copy in f32.
const void* Products::product_operand(const Tensor& tensor, Workspace& workspace) {
  if (native_bf16_ || tensor.dtype == DType::f32) return tensor.data;
  auto* copy = workspace.array<float>(tensor.elements());
  kernels_.convert(Type::bf16, tensor.data, Type::f32, copy, tensor.elements());
  return copy;
}

const Products::Packed& Products::packed(Product product, const Weight& w, const Sizes& sizes) {
  auto& entry = packed_[{w.tensor.data, product, sizes.experts, sizes.outputs, sizes.inputs}];
  if (entry.memory.size_bytes() > 0 && entry.version == w.version && w.version != 0) return entry;
  const Type type = native_bf16_ ? type_of(w.tensor) : Type::f32;
  const auto* plain = static_cast<const std::byte*>(product_operand(w.tensor, converted_));
  const std::int64_t plain_bytes = sizes.outputs * sizes.inputs * bytes_of(type);
  entry.stride_bytes = matmul_.packed_bytes(product, type, sizes.outputs, sizes.inputs);
  if (entry.memory.size_bytes() < entry.stride_bytes * sizes.experts) {
    entry.memory = Buffer(entry.stride_bytes * sizes.experts);
  }
  for (std::int64_t e = 0; e < sizes.experts; ++e) {
    matmul_.pack(product, type, sizes.outputs, sizes.inputs, plain + e * plain_bytes,
                 entry.memory.data() + e * entry.stride_bytes);
  }
  entry.version = w.version;
  return entry;
}

void Products::multiply(Product product, const Tensor& in, std::span<const std::int64_t> offsets, const Weight& w,
                        const Tensor& out) {
  const int dims = w.tensor.shape.dims();
  const Sizes sizes{dims == 3 ? w.tensor.shape[0] : 1, w.tensor.shape[dims - 2], w.tensor.shape[dims - 1]};
  const std::int64_t rows = offsets.back();
  if (rows == 0) return;
  const auto& weights = packed(product, w, sizes);
  const bool widened = !native_bf16_ && out.dtype == DType::bf16;
  const bool forward = product == Product::forward;
  MatmulKey key{.product = product,
                .in = native_bf16_ ? type_of(in) : Type::f32,
                .out = widened ? Type::f32 : type_of(out),
                .m = rows,
                .n = forward ? sizes.outputs : sizes.inputs,
                .k = forward ? sizes.inputs : sizes.outputs};
  const auto* from = static_cast<const std::byte*>(product_operand(in, first_));
  auto* to = static_cast<std::byte*>(widened ? result_.array<float>(rows * key.n) : out.data);
  for (std::int64_t e = 0; e < sizes.experts; ++e) {
    const std::int64_t first = offsets[static_cast<std::size_t>(e)];
    const std::int64_t count = offsets[static_cast<std::size_t>(e) + 1] - first;
    const auto* rows_in = from + first * key.k * bytes_of(key.in);
    auto* rows_out = to + first * key.n * bytes_of(key.out);
    const auto* weight = weights.memory.data() + e * weights.stride_bytes;
    if (sizes.experts == 1) {
      matmul_.run(key, rows_in, weight, rows_out);
    } else {
      multiply_rows(key, rows_in, weight, rows_out, count);
    }
  }
  if (widened) kernels_.convert(Type::f32, to, Type::bf16, out.data, rows * key.n);
}

void Products::multiply_rows(MatmulKey key, const std::byte* in, const void* w, std::byte* out, std::int64_t rows) {
  const std::int64_t in_bytes = key.k * bytes_of(key.in);
  const std::int64_t out_bytes = key.n * bytes_of(key.out);
  while (rows >= kSmallestPiece) {
    key.m = largest_piece(rows);
    matmul_.run(key, in, w, out);
    in += key.m * in_bytes;
    out += key.m * out_bytes;
    rows -= key.m;
  }
  if (rows == 0) return;
  key.m = kSmallestPiece;
  auto* padded = static_cast<std::byte*>(tail_in_.bytes(key.m * in_bytes));
  auto* result = static_cast<std::byte*>(tail_out_.bytes(key.m * out_bytes));
  std::memcpy(padded, in, static_cast<std::size_t>(rows * in_bytes));
  std::memset(padded + rows * in_bytes, 0, static_cast<std::size_t>((key.m - rows) * in_bytes));
  matmul_.run(key, padded, w, result);
  std::memcpy(out, result, static_cast<std::size_t>(rows * out_bytes));
}

void Products::gradient(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets, const Tensor& dw) {
  const int dims = dw.shape.dims();
  const std::int64_t experts = dims == 3 ? dw.shape[0] : 1;
  MatmulKey key{.product = Product::gradient,
                .in = native_bf16_ ? type_of(x) : Type::f32,
                .out = Type::f32,
                .m = dw.shape[dims - 2],
                .n = dw.shape[dims - 1],
                .k = offsets.back()};
  if (key.k == 0) return;
  const auto* left = static_cast<const std::byte*>(product_operand(dy, first_));
  const auto* right = static_cast<const std::byte*>(product_operand(x, second_));
  auto* sums = dw.as<float>();
  if (experts == 1) {
    matmul_.run(key, left, right, sums);
    return;
  }
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t first = offsets[static_cast<std::size_t>(e)];
    const std::int64_t count = offsets[static_cast<std::size_t>(e) + 1] - first;
    gradient_rows(key, left + first * key.m * bytes_of(key.in), right + first * key.n * bytes_of(key.in),
                  sums + e * key.m * key.n, count);
  }
}

void Products::gradient_rows(MatmulKey key, const std::byte* dy, const std::byte* x, float* dw, std::int64_t rows) {
  const std::int64_t left_bytes = key.m * bytes_of(key.in);
  const std::int64_t right_bytes = key.n * bytes_of(key.in);
  while (rows >= kSmallestPiece) {
    key.k = largest_piece(rows);
    matmul_.run(key, dy, x, dw);
    dy += key.k * left_bytes;
    x += key.k * right_bytes;
    rows -= key.k;
  }
  if (rows == 0) return;
  key.k = kSmallestPiece;
  auto* left = static_cast<std::byte*>(tail_in_.bytes(key.k * left_bytes));
  auto* right = static_cast<std::byte*>(tail_out_.bytes(key.k * right_bytes));
  std::memcpy(left, dy, static_cast<std::size_t>(rows * left_bytes));
  std::memset(left + rows * left_bytes, 0, static_cast<std::size_t>((key.k - rows) * left_bytes));
  std::memcpy(right, x, static_cast<std::size_t>(rows * right_bytes));
  std::memset(right + rows * right_bytes, 0, static_cast<std::size_t>((key.k - rows) * right_bytes));
  matmul_.run(key, left, right, dw);
}

}  // namespace dropcycle::cpu
