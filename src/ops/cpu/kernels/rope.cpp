// Rotary positions in place: (x_i, x_{i+D/2}) -> (x_i c - x_{i+D/2} s, x_{i+D/2} c + x_i s), cosines and sines [P, D/2]
// looked up by position and kept in registers over a token's heads. Limit: memory bandwidth; Zen 4 reaches 0.8
// of it.
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

// Floats in the order of load_two<T>().
inline Two in_order_of(float, const float* from) { return load_two(from); }
inline Two in_order_of(Bf16, const float* from) {
  const Two all = load_two(from);
  const IntVector even = 2 * lane_numbers();
  return {__builtin_shuffle(all.first, all.second, even), __builtin_shuffle(all.first, all.second, even + 1)};
}

template <class T>
void rotate(T* x, const std::int32_t* positions, const float* cosines, const float* sines, float direction,
            std::int64_t rows, std::int64_t row_width, std::int64_t heads, std::int64_t head_size) {
  const std::int64_t half = head_size / 2;
#pragma omp parallel for schedule(static) if (rows * row_width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* cosine = cosines + positions[t] * half;
    const float* sine = sines + positions[t] * half;
    T* const row = x + t * row_width;
    std::int64_t i = 0;
    for (; i + kTwo <= half; i += kTwo) {
      const Two c = in_order_of(T{}, cosine + i);
      Two s = in_order_of(T{}, sine + i);
      s = {s.first * direction, s.second * direction};
      for (T* low = row + i; low < row + heads * head_size; low += head_size) {
        const Two a = WholeTwo{}.load(low, row_width), b = WholeTwo{}.load(low + half, row_width);
        store_two(low, {a.first * c.first - b.first * s.first, a.second * c.second - b.second * s.second});
        store_two(low + half, {b.first * c.first + a.first * s.first, b.second * c.second + a.second * s.second});
      }
    }
    for (T* low = row; low < row + heads * head_size; low += head_size) {
      for (std::int64_t j = i; j < half; ++j) {
        const float a = load(low[j]), b = load(low[half + j]), s = sine[j] * direction;
        store(low[j], a * cosine[j] - b * s);
        store(low[half + j], b * cosine[j] + a * s);
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
