// convert, copy_columns and add. Limit: memory bandwidth; Zen 4 reaches 0.8 to 0.9 of it (convert, of
// which products read the result from the caches) and 1.05 (add): blocks to come are fetched meanwhile.
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

constexpr std::int64_t kBlock = 1024;  // elements

// f(first, count) for blocks of n elements. f fetches the next block: fetch_next().
template <class F>
void by_blocks(std::int64_t n, F f) {
#pragma omp parallel for schedule(static) if (n > kParallelElements)
  for (std::int64_t first = 0; first < n; first += kBlock) f(first, smaller(kBlock, n - first));
}
template <class T>
void fetch_next(const T* x, std::int64_t first, std::int64_t n) {
  if (first + 2 * kBlock <= n) fetch_row(x + first + kBlock, kBlock);
}

template <class T>
bool many(const T* y, std::int64_t n) {
  return past_caches(y, ceil_div(n, kBlock), kBlock * static_cast<std::int64_t>(sizeof(T)));
}

template <class From, class To>
void convert_typed(const From* x, To* out, std::int64_t n) {
  const bool stream = many(out, n);
  by_blocks(n, [=](std::int64_t first, std::int64_t count) {
    fetch_next(x, first, n);
    if (stream) return copy_elements<true>(x + first, out + first, count);
    copy_elements<false>(x + first, out + first, count);
  });
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

template <bool kStream, class T>
void add_block(const T* a, const T* b, T* y, std::int64_t count) {
  by_two(count, [=](std::int64_t i, auto part) {
    const Two left = part.load(a + i), right = part.load(b + i);
    part.template store<kStream>(y + i, {left.first + right.first, left.second + right.second});
  });
}

template <class T>
void add_typed(const T* a, const T* b, T* y, std::int64_t n) {
  const bool stream = many(y, n);
  by_blocks(n, [=](std::int64_t first, std::int64_t count) {
    fetch_next(a, first, n);
    fetch_next(b, first, n);
    (stream ? add_block<true, T> : add_block<false, T>)(a + first, b + first, y + first, count);
  });
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
