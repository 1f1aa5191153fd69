// Rotary positions in place: (x_i, x_{i+D/2}) -> (x_i c - x_{i+D/2} s, x_{i+D/2} c + x_i s), cosines and sines [P, D/2]
// looked up by position. Limit: memory bandwidth; Zen 4 reaches 0.3 to 0.7 of it.
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

template <class T>
void rotate(T* x, const std::int32_t* positions, const float* cosines, const float* sines, float direction,
            std::int64_t rows, std::int64_t row_width, std::int64_t heads, std::int64_t head_size) {
  const std::int64_t half = head_size / 2;
#pragma omp parallel for schedule(static) if (rows * row_width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* cosine = cosines + positions[t] * half;
    const float* sine = sines + positions[t] * half;
    for (std::int64_t head = 0; head < heads; ++head) {
      T* low = x + t * row_width + head * head_size;
      T* high = low + half;
      std::int64_t i = 0;
      for (; i + kLanes <= half; i += kLanes) {
        const Vector a = load_vector(low + i), b = load_vector(high + i);
        const Vector c = load_vector(cosine + i), s = load_vector(sine + i) * direction;
        store_vector(low + i, a * c - b * s);
        store_vector(high + i, b * c + a * s);
      }
      for (; i < half; ++i) {
        const float a = load(low[i]);
        const float b = load(high[i]);
        const float s = sine[i] * direction;
        store(low[i], a * cosine[i] - b * s);
        store(high[i], b * cosine[i] + a * s);
      }
    }
  }
}

}  // namespace

void rope(Type type, void* x, const std::int32_t* positions, const float* cosines, const float* sines, float direction,
          std::int64_t rows, std::int64_t row_width, std::int64_t heads, std::int64_t head_size) {
  with_type(type, [&]<class T>(T) {
    rotate(static_cast<T*>(x), positions, cosines, sines, direction, rows, row_width, heads, head_size);
  });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
