// Sum of squares in double, and AdamW in one pass. Limit: memory bandwidth (30 bytes a parameter for AdamW).
#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

template <class T>
void squares(const T* x, double* partial, std::int64_t n) {
  const std::int64_t per_chunk = ceil_div(n, kNormChunks);
#pragma omp parallel for schedule(static) if (n > kParallelElements)
  for (std::int64_t chunk = 0; chunk < kNormChunks; ++chunk) {
    const std::int64_t first = chunk * per_chunk;
    const std::int64_t end = first + per_chunk < n ? first + per_chunk : n;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = first; i < end; ++i) {
      const double value = load(x[i]);
      sum += value * value;
    }
    partial[chunk] = sum;
  }
}

template <class T>
void update(const AdamwConstants& constants, const float* gradient, float* master, float* m, float* v, T* weight,
            std::int64_t n) {
  const AdamwConstants c = constants;
#pragma omp parallel for simd schedule(static) if (n > kParallelElements)
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = c.gradient_scale * gradient[i];
    const float first = c.beta1 * m[i] + c.one_minus_beta1 * g;
    const float second = c.beta2 * v[i] + c.one_minus_beta2 * (g * g);
    m[i] = first;
    v[i] = second;
    const float step = c.step_size * first / (__builtin_sqrtf(second) * c.inv_sqrt_correction2 + c.epsilon);
    const float value = master[i] - (step + c.decay * master[i]);
    master[i] = value;
    if (weight != nullptr) store(weight[i], value);
  }
}

}  // namespace

void squared_norm(Type type, const void* x, double* partial, std::int64_t n) {
  with_type(type, [&]<class T>(T) { squares(static_cast<const T*>(x), partial, n); });
}

void adamw(const AdamwConstants& c, const float* gradient, float* master, float* m, float* v, Type type, void* weight,
           std::int64_t n) {
  with_type(type, [&]<class T>(T) { update(c, gradient, master, m, v, static_cast<T*>(weight), n); });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
