#include "products.hpp"

#include <omp.h>

#include <algorithm>

#include "dropcycle/core/error.hpp"

namespace dropcycle::cpu {
namespace {

std::int64_t bytes_of(Type type) { return type == Type::bf16 ? 2 : 4; }

// Rows of a task of forward and backward, and of a weight's gradient.
constexpr std::int64_t kTaskRows = 256, kTaskOutputs = 1024;

// Our own products are cut into at least so many tasks for each thread, while these are large enough. Bits don't depend
// on it.
constexpr std::int64_t kTasks = 2;

std::int64_t pieces_of(std::int64_t all, std::int64_t each) { return (all + each - 1) / each; }

struct TaskSizes {
  std::int64_t rows, columns;
  std::int64_t count(std::int64_t all_rows, std::int64_t all_columns) const {
    return pieces_of(all_rows, rows) * pieces_of(all_columns, columns);
  }
};

}  // namespace

Type type_of(const Tensor& tensor) {
  require(tensor.dtype == DType::f32 || tensor.dtype == DType::bf16, "the cpu backend takes f32 and bf16, not {} {}",
          name(tensor.dtype), to_string(tensor.shape));
  return tensor.dtype == DType::bf16 ? Type::bf16 : Type::f32;
}

Products::Products(InstructionSet set, const Kernels& kernels, const Bf16Kernels& bf16_kernels)
    : matmul_(set, kernels),
      native_bf16_(multiplies_bf16()),
      shares_out_(has_avx512(set)),
      kernels_(kernels),
      bf16_kernels_(bf16_kernels) {}

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
  entry.stride_bytes = matmul_.packed_bytes(product, type, sizes.outputs, sizes.inputs);
  if (entry.memory.size_bytes() < entry.stride_bytes * sizes.experts) {
    entry.memory = Buffer(entry.stride_bytes * sizes.experts);
  }
  const auto* plain = static_cast<const std::byte*>(product_operand(w.tensor, converted_));
  for (std::int64_t e = 0; e < sizes.experts; ++e) {
    matmul_.pack(product, type, sizes.outputs, sizes.inputs, plain + e * sizes.outputs * sizes.inputs * bytes_of(type),
                 entry.memory.data() + e * entry.stride_bytes);
  }
  entry.version = w.version;
  return entry;
}

bool Products::takes_bf16(const Tensor& in, const Tensor& other, std::int64_t columns, std::int64_t depth) const {
  return native_bf16_ && in.dtype == DType::bf16 && other.dtype == DType::bf16 && columns % 16 == 0 && depth % 2 == 0;
}

void Products::run_bf16(const Bf16Sizes& sizes) {
  constexpr std::int64_t kHugePage = 2 << 20;  // panels on small pages cost a tenth of the product's time
  const std::int64_t bytes = omp_get_max_threads() * bf16_kernels_.products_scratch();
  bf16_kernels_.products(sizes, bf16_tasks_.data(), static_cast<std::int64_t>(bf16_tasks_.size()),
                         panels_.bytes(std::max(bytes, kHugePage)));
}

void Products::multiply_bf16(Product product, const Tensor& in, std::span<const std::int64_t> offsets,
                             const Tensor& weights, const Tensor& out) {
  const bool forward = product == Product::forward;
  const int dims = weights.shape.dims();
  const std::int64_t outputs = weights.shape[dims - 2], inputs = weights.shape[dims - 1];
  const std::int64_t n = forward ? outputs : inputs, k = forward ? inputs : outputs;
  const std::int64_t experts = static_cast<std::int64_t>(offsets.size()) - 1;
  // Columns are packed once for each piece of rows.
  TaskSizes sizes{bf16_kernels_.tasks.rows, bf16_kernels_.tasks.columns};
  const std::int64_t tasks = kTasks * omp_get_max_threads();
  while (sizes.columns > 64 && sizes.count(offsets.back(), n) < tasks) sizes.columns /= 2;
  while (sizes.rows > 128 && sizes.count(offsets.back(), n) < tasks) sizes.rows /= 2;
  const auto* a = in.as<BF16>();
  const auto* b = weights.as<BF16>();
  auto* c = static_cast<std::byte*>(out.data);
  bf16_tasks_.clear();
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t start = offsets[static_cast<std::size_t>(e)];
    const std::int64_t rows = offsets[static_cast<std::size_t>(e) + 1] - start;
    const std::int64_t pieces = pieces_of(rows, sizes.rows);
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      const std::int64_t first = start + rows * piece / pieces, last = start + rows * (piece + 1) / pieces;
      for (std::int64_t column = 0; column < n; column += sizes.columns) {
        bf16_tasks_.push_back({a + first * k, b + e * n * k + column * (forward ? inputs : 1),
                               c + (first * n + column) * bytes_of(type_of(out)), last - first,
                               std::min(sizes.columns, n - column), k});
      }
    }
  }
  run_bf16(
      {.gradient = false,
       .transposed = forward,
       .a_stride = k,
       .b_stride = inputs,
       .c_stride = n,
       .c_type = type_of(out),
       .stream = out.bytes() > kStreamBytes && n % 32 == 0 && reinterpret_cast<std::uintptr_t>(out.data) % 64 == 0});
}

void Products::gradient_bf16(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                             const Tensor& dw) {
  const int dims = dw.shape.dims();
  const std::int64_t outputs = dw.shape[dims - 2], inputs = dw.shape[dims - 1];
  const std::int64_t experts = static_cast<std::int64_t>(offsets.size()) - 1;
  TaskSizes sizes{bf16_kernels_.tasks.gradient_rows, bf16_kernels_.tasks.gradient_columns};
  const std::int64_t tasks = kTasks * omp_get_max_threads();
  const auto more = [&] { return experts * sizes.count(outputs, inputs) < tasks; };
  while (sizes.rows > 256 && more()) sizes.rows /= 2;
  while (sizes.rows > 64 && more()) (sizes.rows < sizes.columns ? sizes.columns : sizes.rows) /= 2;
  bf16_tasks_.clear();
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t first = offsets[static_cast<std::size_t>(e)];
    const std::int64_t k = offsets[static_cast<std::size_t>(e) + 1] - first;
    for (std::int64_t output = 0; output < outputs && k > 0; output += sizes.rows) {
      for (std::int64_t input = 0; input < inputs; input += sizes.columns) {
        bf16_tasks_.push_back({dy.as<BF16>() + first * outputs + output, x.as<BF16>() + first * inputs + input,
                               dw.as<float>() + (e * outputs + output) * inputs + input,
                               std::min(sizes.rows, outputs - output), std::min(sizes.columns, inputs - input), k});
      }
    }
  }
  run_bf16({.gradient = true,
            .transposed = false,
            .a_stride = outputs,
            .b_stride = inputs,
            .c_stride = inputs,
            .c_type = Type::f32,
            .stream = false});
}

void Products::multiply(Product product, const Tensor& in, std::span<const std::int64_t> offsets, const Weight& w,
                        const Tensor& out) {
  const int dims = w.tensor.shape.dims();
  const Sizes sizes{dims == 3 ? w.tensor.shape[0] : 1, w.tensor.shape[dims - 2], w.tensor.shape[dims - 1]};
  const std::int64_t rows = offsets.back();
  if (rows == 0) return;
  const std::int64_t k = product == Product::forward ? sizes.inputs : sizes.outputs;
  if (takes_bf16(in, w.tensor, sizes.outputs + sizes.inputs - k, k)) {
    return multiply_bf16(product, in, offsets, w.tensor, out);
  }
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
  if (sizes.experts == 1 && shares_out_) {
    matmul_.run(key, from, weights.memory.data(), to);
  } else {
    tasks_.clear();
    for (std::int64_t e = 0; e < sizes.experts; ++e) {
      const std::int64_t last = offsets[static_cast<std::size_t>(e) + 1];
      for (std::int64_t row = offsets[static_cast<std::size_t>(e)]; row < last; row += kTaskRows) {
        tasks_.push_back({key, from + row * key.k * bytes_of(key.in), weights.memory.data() + e * weights.stride_bytes,
                          to + row * key.n * bytes_of(key.out), std::min(kTaskRows, last - row)});
      }
    }
    matmul_.run(tasks_);
  }
  if (widened) kernels_.convert(Type::f32, to, Type::bf16, out.data, rows * key.n);
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
  if (takes_bf16(dy, x, key.n, 2)) return gradient_bf16(dy, x, offsets, dw);
  const auto* left = static_cast<const std::byte*>(product_operand(dy, first_));
  const auto* right = static_cast<const std::byte*>(product_operand(x, second_));
  auto* sums = dw.as<float>();
  if (experts == 1 && shares_out_) {
    matmul_.run(key, left, right, sums);
    return;
  }
  const std::int64_t outputs = key.m, bytes = bytes_of(key.in);
  key.a_stride = outputs;
  tasks_.clear();
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t first = offsets[static_cast<std::size_t>(e)];
    const std::int64_t count = offsets[static_cast<std::size_t>(e) + 1] - first;
    for (std::int64_t output = 0; output < outputs && count > 0; output += kTaskOutputs) {
      key.m = std::min(kTaskOutputs, outputs - output);
      tasks_.push_back({key, left + (first * outputs + output) * bytes, right + first * key.n * bytes,
                        reinterpret_cast<std::byte*>(sums + (e * outputs + output) * key.n), count});
    }
  }
  matmul_.run(tasks_);
}

}  // namespace dropcycle::cpu
