// RMSNorm with the residual addition before it, and its adjoint; the residual stream is float. Limit: memory bandwidth;
// each row is read once from memory and once from the cache. Zen 4 reaches 0.8 to 1.2 of it.
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

inline Two operator+(const Two& a, const Two& b) { return {a.first + b.first, a.second + b.second}; }

// Whether the sums, and the outputs, are written past the caches.
template <bool kSums, bool kOutputs, class T>
void norm_rows(const float* x, const float* delta, const float* w, float epsilon, float* sum, T* y, float* inv_rms,
               std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* row = x + t * width;
    const float* added = delta == nullptr ? nullptr : delta + t * width;
    Vector squares{};
    by_two(width, [&](std::int64_t h, auto part) {  // and fetches the next row
      const Two first = part.load(row + h, width);
      const Two values = added == nullptr ? first : first + part.load(added + h, width);
      squares += values.first * values.first + values.second * values.second;
    });
    const float inverse = 1.0F / __builtin_sqrtf(sum_of(squares) / static_cast<float>(width) + epsilon);
    inv_rms[t] = inverse;
    by_two(width, [&](std::int64_t h, auto part) {
      const Two first = part.load(row + h), scale = part.load(w + h);
      const Two values = added == nullptr ? first : first + part.load(added + h);
      if (added != nullptr) part.template store<kSums>(sum + t * width + h, values);
      part.template store_in_order<kOutputs>(
          y + t * width + h, {values.first * inverse * scale.first, values.second * inverse * scale.second});
    });
  }
}

void backward_row(const float* dy, const float* x, const float* w, float inverse, const float* dresidual, float* dx,
                  float* dw, std::int64_t width) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t h = 0; h < width; ++h) dot += dy[h] * w[h] * x[h];
  const float factor = inverse * inverse * inverse * (dot / static_cast<float>(width));
  if (dresidual != nullptr) {
#pragma omp simd
    for (std::int64_t h = 0; h < width; ++h) {
      const float g = dy[h] * inverse;
      const float value = x[h];
      dw[h] += g * value;
      dx[h] = dresidual[h] + (g * w[h] - value * factor);
    }
  } else {
#pragma omp simd
    for (std::int64_t h = 0; h < width; ++h) {
      const float g = dy[h] * inverse;
      const float value = x[h];
      dw[h] += g * value;
      dx[h] = g * w[h] - value * factor;
    }
  }
}

void backward(const float* dy, const float* x, const float* w, const float* inv_rms, const float* dresidual, float* dx,
              float* dw, float* scratch, std::int64_t rows, std::int64_t width) {
  const std::int64_t per_chunk = ceil_div(rows, kReductionChunks);
  const std::int64_t chunks = ceil_div(rows, per_chunk);
#pragma omp parallel if (rows * width > kParallelElements)
  {
#pragma omp for schedule(static)
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      float* partial = scratch + chunk * width;
      for (std::int64_t h = 0; h < width; ++h) partial[h] = 0;
      const std::int64_t end = (chunk + 1) * per_chunk < rows ? (chunk + 1) * per_chunk : rows;
      for (std::int64_t t = chunk * per_chunk; t < end; ++t) {
        const std::int64_t at = t * width;
        backward_row(dy + at, x + at, w, inv_rms[t], dresidual == nullptr ? nullptr : dresidual + at, dx + at, partial,
                     width);
      }
    }
#pragma omp for simd schedule(static)
    for (std::int64_t h = 0; h < width; ++h) {
      float total = 0;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) total += scratch[chunk * width + h];
      dw[h] += total;
    }
  }
}

}  // namespace

void add_rms_norm(Type type, const float* x, const float* delta, const float* w, float epsilon, float* sum, void* y,
                  float* inv_rms, std::int64_t rows, std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    const bool sums = delta != nullptr && past_caches(sum, rows, width * 4);
    const bool outputs = past_caches(y, rows, width * static_cast<std::int64_t>(sizeof(T)));
    const auto norm = outputs ? (sums ? norm_rows<true, true, T> : norm_rows<false, true, T>)
                              : (sums ? norm_rows<true, false, T> : norm_rows<false, false, T>);
    norm(x, delta, w, epsilon, sum, static_cast<T*>(y), inv_rms, rows, width);
  });
}

void rms_norm_backward(const float* dy, const float* x, const float* w, const float* inv_rms, const float* dresidual,
                       float* dx, float* dw, float* scratch, std::int64_t rows, std::int64_t width) {
  if (rows == 0) return;
  backward(dy, x, w, inv_rms, dresidual, dx, dw, scratch, rows, width);
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
