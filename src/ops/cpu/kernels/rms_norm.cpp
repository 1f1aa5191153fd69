// RMSNorm with the residual addition before it, and its adjoint; the residual stream is float. Limit: memory bandwidth;
// each row is read once from memory and once from the cache.
#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

float inv_rms_of(const float* x, float epsilon, std::int64_t width) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t h = 0; h < width; ++h) squares += x[h] * x[h];
  return 1.0F / __builtin_sqrtf(squares / static_cast<float>(width) + epsilon);
}

template <class T>
void forward(const float* x, const float* delta, const float* w, float epsilon, float* sum, T* y, float* inv_rms,
             std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* row = x + t * width;
    if (delta != nullptr) {
      const float* delta_row = delta + t * width;
      float* sum_row = sum + t * width;
#pragma omp simd
      for (std::int64_t h = 0; h < width; ++h) sum_row[h] = row[h] + delta_row[h];
      row = sum_row;
    }
    const float inverse = inv_rms_of(row, epsilon, width);
    inv_rms[t] = inverse;
    T* out = y + t * width;
#pragma omp simd
    for (std::int64_t h = 0; h < width; ++h) store(out[h], row[h] * inverse * w[h]);
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
  with_type(type, [&]<class T>(T) { forward(x, delta, w, epsilon, sum, static_cast<T*>(y), inv_rms, rows, width); });
}

void rms_norm_backward(const float* dy, const float* x, const float* w, const float* inv_rms, const float* dresidual,
                       float* dx, float* dw, float* scratch, std::int64_t rows, std::int64_t width) {
  if (rows == 0) return;
  backward(dy, x, w, inv_rms, dresidual, dx, dw, scratch, rows, width);
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
