// Rows anywhere: y[t] = x[index[t]], 0 for a negative index (embedding and dispatch), and the embedding's adjoint:
// dw[tokens[t]] += dy[t] in the order of t, without negative tokens. There a thread owns the rows whose index is
// congruent to its number, so no two threads write one row and the order of the sums is that of t. Limit: memory
// bandwidth, of which Zen 4 reaches 0.8 to 1.2, and 1.1 to 2 with sums, whose rows partly lie in the caches: rows to
// come are fetched meanwhile.
#include <omp.h>

#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

constexpr std::int64_t kGatherRowsAhead = 8;

template <class T>
void add_row(const T* from, float* to, std::int64_t width) {
#pragma omp simd
  for (std::int64_t h = 0; h < width; ++h) to[h] += load(from[h]);
}

template <bool kStream, class From, class To>
void gather(const From* x, const std::int32_t* index, To* y, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    if (t + kGatherRowsAhead < rows && index[t + kGatherRowsAhead] >= 0)
      fetch_row(x + index[t + kGatherRowsAhead] * width, width);
    To* to = y + t * width;
    if (index[t] >= 0) {
      copy_elements<kStream>(x + index[t] * width, to, width);
    } else {
      for (std::int64_t h = 0; h < width; ++h) to[h] = {};
    }
  }
}

}  // namespace

void gather_rows(Type from, const void* x, const std::int32_t* index, Type to, void* y, std::int64_t rows,
                 std::int64_t width) {
  with_type(from, [&]<class From>(From) {
    with_type(to, [&]<class To>(To) {
      const bool stream = past_caches(y, rows, width * static_cast<std::int64_t>(sizeof(To)));
      (stream ? gather<true, From, To> : gather<false, From, To>)(static_cast<const From*>(x), index,
                                                                  static_cast<To*>(y), rows, width);
    });
  });
}

void embedding_backward(Type type, const void* dy, const std::int32_t* tokens, float* dw, std::int64_t rows,
                        std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    const auto* from = static_cast<const T*>(dy);
#pragma omp parallel if (rows * width > kParallelElements)
    {
      const std::int32_t threads = omp_get_num_threads();
      const std::int32_t thread = omp_get_thread_num();
      const auto owns = [=](std::int64_t t) { return t < rows && tokens[t] >= 0 && tokens[t] % threads == thread; };
      for (std::int64_t t = 0; t < rows; ++t) {
        if (const std::int64_t next = t + kGatherRowsAhead; owns(next)) {
          fetch_row(from + next * width, width);
          fetch_row(dw + tokens[next] * width, width);
        }
        if (owns(t)) add_row(from + t * width, dw + tokens[t] * width, width);
      }
    }
  });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
