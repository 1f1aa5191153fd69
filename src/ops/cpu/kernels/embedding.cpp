// y[t] = w[tokens[t]], 0 for a negative token, and its adjoint: dw[tokens[t]] += dy[t] in the order of t, without
// negative tokens. There a thread owns the rows whose index is congruent to its number, so no two threads write one row
// and the order of the sums is that of t. Limit: memory bandwidth; Zen 4 reaches 0.4 to 0.6 of it, rows lying anywhere.
#include <omp.h>

#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

void embedding(Type type, const void* w, const std::int32_t* tokens, float* y, std::int64_t rows, std::int64_t width) {
  with_type(type, [&]<class T>(T) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
    for (std::int64_t t = 0; t < rows; ++t) {
      const bool here = tokens[t] >= 0;
      const T* from = static_cast<const T*>(w) + (here ? tokens[t] * width : 0);
      float* to = y + t * width;
#pragma omp simd
      for (std::int64_t h = 0; h < width; ++h) to[h] = here ? load(from[h]) : 0.0F;
    }
  });
}

void embedding_backward(Type type, const void* dy, const std::int32_t* tokens, float* dw, std::int64_t rows,
                        std::int64_t width) {
  with_type(type, [&]<class T>(T) {
#pragma omp parallel if (rows * width > kParallelElements)
    {
      const std::int32_t threads = omp_get_num_threads();
      const std::int32_t thread = omp_get_thread_num();
      for (std::int64_t t = 0; t < rows; ++t) {
        if (tokens[t] < 0 || tokens[t] % threads != thread) continue;
        const T* from = static_cast<const T*>(dy) + t * width;
        float* to = dw + tokens[t] * width;
#pragma omp simd
        for (std::int64_t h = 0; h < width; ++h) to[h] += load(from[h]);
      }
    }
  });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
