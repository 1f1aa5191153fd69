// Sum of squares in double, and AdamW in one pass, whose rounded weights go past the caches. Limit: memory bandwidth
// (30 bytes a parameter for AdamW); Zen 4 reaches more than a copy of as many bytes, since masters and moments are
// written where they were read.
#include "vectors.hpp"

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

constexpr std::int64_t kChunk = 4096;  // elements of AdamW's tasks

template <class T>
void update(const AdamwConstants& constants, const float* gradient, float* master, float* m, float* v, T* weight,
            std::int64_t n) {
  const AdamwConstants c = constants;
  const bool stream = past_caches(weight, 1, n / kTwo * 64);
#pragma omp parallel for schedule(static) if (n > kParallelElements)
  for (std::int64_t chunk = 0; chunk < n; chunk += kChunk) {
    const std::int64_t end = chunk + kChunk < n ? chunk + kChunk : n;
    for (std::int64_t first = chunk; first < end; first += kTwo) {
      const std::int64_t count = end - first < kTwo ? end - first : kTwo;
      float values[kTwo];
#pragma omp simd
      for (std::int64_t j = 0; j < count; ++j) {
        const std::int64_t i = first + j;
        const float g = c.gradient_scale * gradient[i];
        const float mean = c.beta1 * m[i] + c.one_minus_beta1 * g;
        const float square = c.beta2 * v[i] + c.one_minus_beta2 * (g * g);
        m[i] = mean;
        v[i] = square;
        const float step = c.step_size * mean / (__builtin_sqrtf(square) * c.inv_sqrt_correction2 + c.epsilon);
        values[j] = master[i] - (step + c.decay * master[i]);
        master[i] = values[j];
      }
      if (weight == nullptr) continue;
      if (count == kTwo && stream) {
        store_ordered<true>(weight + first, load_two(values));
      } else {
        for (std::int64_t j = 0; j < count; ++j) store(weight[first + j], values[j]);
      }
    }
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
