// Sum of squares in double, and AdamW in one pass. Limit: memory bandwidth (28 bytes a parameter for AdamW); Zen 4
// reaches more than a copy of as many bytes, since masters and moments are written where they were read.
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

// Masters where they lie whole, or in two halves (MasterHalves).
struct WholeMasters {
  float* values;
  float load(std::int64_t i) const { return values[i]; }
  void store(std::int64_t i, float value) const { values[i] = value; }
};
struct HalvedMasters {
  std::uint16_t* weight;
  std::int16_t* low;
  float load(std::int64_t i) const {
    return __builtin_bit_cast(float, (static_cast<std::int32_t>(weight[i]) << 16) + static_cast<std::int32_t>(low[i]));
  }
  void store(std::int64_t i, float value) const {
    const auto word = __builtin_bit_cast(std::uint32_t, value);
    weight[i] = static_cast<std::uint16_t>((word + 0x8000U) >> 16);
    low[i] = static_cast<std::int16_t>(word);
  }
};

template <class Masters>
void update(const AdamwConstants& constants, const float* gradient, const Masters& masters, float* m, float* v,
            std::int64_t n) {
  const AdamwConstants c = constants;
  const Masters all = masters;
#pragma omp parallel for schedule(static) if (n > kParallelElements)
  for (std::int64_t chunk = 0; chunk < n; chunk += kChunk) {
    const std::int64_t end = chunk + kChunk < n ? chunk + kChunk : n;
#pragma omp simd
    for (std::int64_t i = chunk; i < end; ++i) {
      const float g = c.gradient_scale * gradient[i];
      const float mean = c.beta1 * m[i] + c.one_minus_beta1 * g;
      const float square = c.beta2 * v[i] + c.one_minus_beta2 * (g * g);
      m[i] = mean;
      v[i] = square;
      const float step = c.step_size * mean / (__builtin_sqrtf(square) * c.inv_sqrt_correction2 + c.epsilon);
      const float master = all.load(i);
      all.store(i, master - (step + c.decay * master));
    }
  }
}

}  // namespace

void squared_norm(Type type, const void* x, double* partial, std::int64_t n) {
  with_type(type, [&]<class T>(T) { squares(static_cast<const T*>(x), partial, n); });
}

void split_masters(const float* masters, void* weight, std::int16_t* low, std::int64_t n) {
  auto* rounded = static_cast<std::uint16_t*>(weight);
#pragma omp parallel for simd schedule(static) if (n > kParallelElements)
  for (std::int64_t i = 0; i < n; ++i) {
    const auto read = __builtin_bit_cast(std::uint32_t, masters[i]);
    const bool nan = (read & 0x7fffffffU) > 0x7f800000U;
    const std::uint32_t word = nan ? (read & 0xffff0000U) | 0x400000U : read;
    rounded[i] = static_cast<std::uint16_t>((word + 0x8000U) >> 16);
    if (low != nullptr) low[i] = static_cast<std::int16_t>(word);
  }
}

void join_masters(const void* weight, const std::int16_t* low, float* masters, std::int64_t n) {
  const auto* rounded = static_cast<const std::uint16_t*>(weight);
#pragma omp parallel for simd schedule(static) if (n > kParallelElements)
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t word = (static_cast<std::int32_t>(rounded[i]) << 16) + static_cast<std::int32_t>(low[i]);
    masters[i] = __builtin_bit_cast(float, word);
  }
}

void adamw(const AdamwConstants& c, const float* gradient, float* master, float* m, float* v, std::int64_t n) {
  update(c, gradient, WholeMasters{master}, m, v, n);
}

void adamw_halves(const AdamwConstants& c, const float* gradient, void* weight, std::int16_t* low, float* m, float* v,
                  std::int64_t n) {
  update(c, gradient, HalvedMasters{static_cast<std::uint16_t*>(weight), low}, m, v, n);
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
