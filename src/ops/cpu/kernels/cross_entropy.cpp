// Cross-entropy of a block of rows and its gradient. A row passes three times: maximum, exponentials with their sum,
// gradient; rows of up to some 100,000 logits stay in the second-level cache between the passes. Limit: memory
// bandwidth of one reading and one writing.
#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

struct Softmax {
  float largest, sum;  // of exp(x - largest)
};

Softmax softmax_of(const float* x, std::int64_t n) {
  float largest = x[0];
#pragma omp simd reduction(max : largest)
  for (std::int64_t v = 0; v < n; ++v) largest = x[v] > largest ? x[v] : largest;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t v = 0; v < n; ++v) sum += exp_fast(x[v] - largest);
  return {largest, sum};
}

template <class T>
void rows_of(const float* logits, const std::int32_t* targets, float scale, float* losses, T* dlogits,
             std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* row = logits + t * width;
    const std::int32_t target = targets[t];
    T* out = dlogits == nullptr ? nullptr : dlogits + t * width;
    if (target < 0) {
      losses[t] = 0;
      for (std::int64_t v = 0; out != nullptr && v < width; ++v) store(out[v], 0.0F);
      continue;
    }
    const auto [largest, sum] = softmax_of(row, width);
    losses[t] = largest + __builtin_logf(sum) - row[target];
    if (out == nullptr) continue;
    const float factor = scale / sum;
    const float top = largest;
#pragma omp simd
    for (std::int64_t v = 0; v < width; ++v) store(out[v], factor * exp_fast(row[v] - top));
    store(out[target], factor * exp_fast(row[target] - top) - scale);
  }
}

}  // namespace

void cross_entropy(const float* logits, const std::int32_t* targets, float scale, float* losses, Type type,
                   void* dlogits, std::int64_t rows, std::int64_t width) {
  with_type(type, [&]<class T>(T) { rows_of(logits, targets, scale, losses, static_cast<T*>(dlogits), rows, width); });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
