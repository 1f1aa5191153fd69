// The table of vectorised kernels. Each is compiled once per instruction set (kernels.cmake) into its own namespace;
// CpuOps takes the table of the best set that the processor has. Shapes and formulas: dropcycle/ops/ops.hpp.
//
// Type says what the arguments called x, y, ... hold (weights and activations); statistics and gradients of parameters
// are float. `scratch` is float memory of the size that the function of the same name + _scratch gives.
#pragma once

#include <cstdint>

namespace dropcycle::cpu {

enum class Type : std::uint8_t { f32, bf16 };

struct AdamwConstants {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon;
  float step_size;             // learning_rate / (1 - beta1^step)
  float inv_sqrt_correction2;  // 1 / sqrt(1 - beta2^step)
  float decay;                 // learning_rate * weight_decay
  float gradient_scale;
};

// Queries and keys of `batch` sequences. A query sees the keys first_key to last_key of its sequence. Strides count
// elements from row to row.
struct AttentionArguments {
  std::int64_t batch, queries, keys, heads, kv_heads, head_size, q_stride, k_stride, v_stride;
  float scale;
  const void *q, *k, *v;
  const std::int32_t* first_key;  // [batch * queries], or null: 0
  const std::int32_t* last_key;   // [batch * queries], or null: keys - queries + i for query i of a sequence
  void* out;                      // [batch * queries, heads, head_size]
  float* lse;                     // [batch * queries, heads], or null
  const void* dout;
  void *dq, *dk, *dv;
  std::int64_t dq_stride, dk_stride, dv_stride;
  Type dkv_type;
  void* scratch;  // of the size that attention_scratch gives for the threads that run
};

// Products of bf16 matrices (products_bf16.cpp), cut into tasks: c[rows, columns] = a[rows, k] b[k, columns], where b
// is stored as it is or `transposed`; or of `gradient`, c[rows, columns] += aᵀ b with a [k, rows], b [k, columns].
// Strides count elements from row to row as stored. But for gradients k is even; columns are a multiple of 16.
struct Bf16Sizes {
  bool gradient, transposed;
  std::int64_t a_stride, b_stride, c_stride;
  Type c_type;  // of gradient f32
  bool stream;  // c past the caches; it and its rows at multiples of 64 bytes
};
struct Bf16Task {
  const void *a, *b;
  void* c;
  std::int64_t rows, columns, k;
};
constexpr std::int64_t kBf16TaskRows = 512, kAmxTaskRows = 2048;  // at most
constexpr std::int64_t kBf16TaskOutputs = 2048,
                       kBf16TaskInputs = 512;  // rows and columns of a gradient's task, at most

// A matrix [k, n] in blocks of (kRows * group) x columns. Element (i, j) lies at element
//   i / (kRows * group) * k_stride + j / columns * n_stride
//     + ((i / group % kRows) * columns + j % columns) * group + i % group.
struct BlockedLayout {
  static constexpr std::int64_t kRows = 16;
  std::int64_t columns = 0, group = 0;  // group: 2 of bf16, 1 of float: 4 bytes
  std::int64_t k_stride = 0, n_stride = 0;
};

#define DROPCYCLE_KERNELS(KERNEL)                                                                                      \
  KERNEL(convert, (Type from, const void* x, Type to, void* out, std::int64_t n))                                      \
  KERNEL(copy_columns, (Type from, const void* x, std::int64_t x_stride, Type to, void* out, std::int64_t out_stride,  \
                        std::int64_t rows, std::int64_t width))                                                        \
  KERNEL(add, (Type type, const void* a, const void* b, void* y, std::int64_t n))                                      \
  KERNEL(pack,                                                                                                         \
         (const BlockedLayout& layout, bool transposed, std::int64_t k, std::int64_t n, const void* w, void* packed))  \
  KERNEL(gather_rows, (Type from, const void* x, const std::int32_t* index, Type to, void* y, std::int64_t rows,       \
                       std::int64_t width))                                                                            \
  KERNEL(embedding_backward,                                                                                           \
         (Type type, const void* dy, const std::int32_t* tokens, float* dw, std::int64_t rows, std::int64_t width))    \
  KERNEL(add_rms_norm, (Type type, const float* x, const float* delta, const float* w, float epsilon, float* sum,      \
                        void* y, float* inv_rms, std::int64_t rows, std::int64_t width))                               \
  KERNEL(rms_norm_backward,                                                                                            \
         (const float* dy, const float* x, const float* w, const float* inv_rms, const float* dresidual, float* dx,    \
          float* dw, float* scratch, std::int64_t rows, std::int64_t width))                                           \
  KERNEL(rope,                                                                                                         \
         (Type type, void* x, const std::int32_t* positions, const float* cosines, const float* sines,                 \
          float direction, std::int64_t rows, std::int64_t row_width, std::int64_t heads, std::int64_t head_size))     \
  KERNEL(swiglu, (Type type, const void* gate_up, void* y, std::int64_t rows, std::int64_t width))                     \
  KERNEL(swiglu_backward, (Type type, const void* dy, const void* gate_up, void* dgate_up, void* y, std::int64_t rows, \
                           std::int64_t width))                                                                        \
  KERNEL(router_logits, (Type type, const void* x, const float* w, float* logits, std::int64_t rows,                   \
                         std::int64_t width, std::int64_t experts))                                                    \
  KERNEL(router_logits_backward, (Type type, const float* dlogits, const void* x, const float* w, float* dx,           \
                                  float* dw, std::int64_t rows, std::int64_t width, std::int64_t experts))             \
  KERNEL(route, (bool softmax_first, const float* logits, std::int32_t* experts, float* weights, float* probabilities, \
                 float* lse, std::int64_t rows, std::int64_t n_experts, std::int64_t top_k))                           \
  KERNEL(route_backward,                                                                                               \
         (bool softmax_first, const std::int32_t* experts, const float* weights, const float* probabilities,           \
          const float* lse, const float* dweights, const float* dprobabilities, float z, float* dlogits,               \
          std::int64_t rows, std::int64_t n_experts, std::int64_t top_k))                                              \
  KERNEL(sum_rows, (const float* x, float* out, std::int64_t rows, std::int64_t width))                                \
  KERNEL(combine, (Type type, const void* z, const std::int32_t* slots, const float* weights, Type y_type, void* y,    \
                   std::int64_t rows, std::int64_t top_k, std::int64_t width))                                         \
  KERNEL(combine_backward,                                                                                             \
         (Type type, const float* dy, const void* z, const std::int32_t* slots, const float* weights, void* dz,        \
          float* dweights, std::int64_t rows, std::int64_t top_k, std::int64_t width))                                 \
  KERNEL(cross_entropy, (const float* logits, const std::int32_t* targets, float scale, float* losses, Type type,      \
                         void* dlogits, float* scratch, std::int64_t rows, std::int64_t width))                        \
  KERNEL(cross_entropy_part, (const float* logits, const std::int32_t* targets, std::int64_t first, float* part,       \
                              std::int64_t rows, std::int64_t width))                                                  \
  KERNEL(cross_entropy_of_parts, (const float* parts, std::int64_t ranks, const float* logits,                         \
                                  const std::int32_t* targets, std::int64_t first, float scale, float* losses,         \
                                  Type type, void* dlogits, std::int64_t rows, std::int64_t width))                    \
  KERNEL(attention_scratch, (const AttentionArguments& a, bool backwards, std::int64_t threads, std::int64_t& bytes))  \
  KERNEL(attention, (Type type, const AttentionArguments& a))                                                          \
  KERNEL(attention_backward, (Type type, const AttentionArguments& a))                                                 \
  KERNEL(squared_norm, (Type type, const void* x, double* partial, std::int64_t n))                                    \
  KERNEL(split_masters, (const float* masters, void* weight, std::int16_t* low, std::int64_t n))                       \
  KERNEL(join_masters, (const void* weight, const std::int16_t* low, float* masters, std::int64_t n))                  \
  KERNEL(adamw, (const AdamwConstants& c, const float* gradient, float* master, float* m, float* v, std::int64_t n))   \
  KERNEL(adamw_halves, (const AdamwConstants& c, const float* gradient, void* weight, std::int16_t* low, float* m,     \
                        float* v, std::int64_t n))

struct Kernels {
#define DROPCYCLE_KERNEL_POINTER(name, arguments) void(*name) arguments;
  DROPCYCLE_KERNELS(DROPCYCLE_KERNEL_POINTER)
#undef DROPCYCLE_KERNEL_POINTER
};

// Larger results, which no cache holds until they are read, are written past the caches.
constexpr std::int64_t kStreamBytes = 4 << 20;

// Reductions over rows are cut into chunks whose number depends on the sizes only, so that bits do not depend on the
// number of threads: each chunk is summed in order, then the chunks in order.
constexpr std::int64_t kReductionChunks = 32;
constexpr std::int64_t kNormChunks = 256;  // of squared_norm's `partial`
// Of cross_entropy's rows: a piece's maximum is found while it comes into the first-level cache, its exponentials from
// there.
constexpr std::int64_t kPieceOfRow = 2048;
// Floats of each thread. static: what is compiled for a newer processor is not shared (common.hpp).
static constexpr std::int64_t cross_entropy_scratch(std::int64_t width) {
  return (width + width / kPieceOfRow + 1 + 15) / 16 * 16;
}

namespace baseline {
Kernels kernels();
}
namespace avx2 {
Kernels kernels();
}
namespace avx512 {
Kernels kernels();
}
// What processors with instructions for bf16 have besides.
#define DROPCYCLE_BF16_KERNELS                                                                                         \
  void attention_bf16_scratch(const AttentionArguments& a, bool backwards, std::int64_t threads, std::int64_t& bytes); \
  void attention_bf16(const AttentionArguments& a);                                                                    \
  void attention_bf16_backward(const AttentionArguments& a);                                                           \
  std::int64_t products_bf16_scratch(); /* bytes for each thread */                                                    \
  void products_bf16(const Bf16Sizes& sizes, const Bf16Task* tasks, std::int64_t count, void* scratch);
namespace avx512bf16 {
Kernels kernels();
DROPCYCLE_BF16_KERNELS
}  // namespace avx512bf16
namespace amx {
DROPCYCLE_BF16_KERNELS
}  // namespace amx
#undef DROPCYCLE_BF16_KERNELS

// The largest tasks of products_bf16.
struct Bf16TaskSizes {
  std::int64_t rows, columns;                    // forward and for dx
  std::int64_t gradient_rows, gradient_columns;  // of dw
};

struct Bf16Kernels {
  decltype(&avx512bf16::attention_bf16_scratch) attention_scratch;
  decltype(&avx512bf16::attention_bf16) attention, attention_backward;
  decltype(&avx512bf16::products_bf16_scratch) products_scratch;
  decltype(&avx512bf16::products_bf16) products;
  Bf16TaskSizes tasks;
};

}  // namespace dropcycle::cpu
