// convert, copy_columns and add. Limit: memory bandwidth; Zen 4 reaches 0.8 to 1.0 of it.
#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

template <class From, class To>
void convert_typed(const From* x, To* out, std::int64_t n) {
#pragma omp parallel for simd schedule(static) if (n > kParallelElements)
  for (std::int64_t i = 0; i < n; ++i) store(out[i], load(x[i]));
}

template <class From, class To>
void copy_columns_typed(const From* x, std::int64_t x_stride, To* out, std::int64_t out_stride, std::int64_t rows,
                        std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) store(out[r * out_stride + i], load(x[r * x_stride + i]));
  }
}

template <class T>
void add_typed(const T* a, const T* b, T* y, std::int64_t n) {
#pragma omp parallel for simd schedule(static) if (n > kParallelElements)
  for (std::int64_t i = 0; i < n; ++i) store(y[i], load(a[i]) + load(b[i]));
}

}  // namespace

void convert(Type from, const void* x, Type to, void* out, std::int64_t n) {
  with_type(from, [&]<class From>(From) {
    with_type(to, [&]<class To>(To) { convert_typed(static_cast<const From*>(x), static_cast<To*>(out), n); });
  });
}

void copy_columns(Type from, const void* x, std::int64_t x_stride, Type to, void* out, std::int64_t out_stride,
                  std::int64_t rows, std::int64_t width) {
  with_type(from, [&]<class From>(From) {
    with_type(to, [&]<class To>(To) {
      copy_columns_typed(static_cast<const From*>(x), x_stride, static_cast<To*>(out), out_stride, rows, width);
    });
  });
}

void add(Type type, const void* a, const void* b, void* y, std::int64_t n) {
  with_type(type,
            [&]<class T>(T) { add_typed(static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(y), n); });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
