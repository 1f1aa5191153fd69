// Vectors of float as wide as the instruction set's, loaded from and stored as both element types; exp and sigmoid.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>  // its functions are always inlined: the linker never sees them
#endif

#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr std::int64_t kLanes = kVectorBytes / 4;
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef float UnalignedVector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef std::int32_t IntVector __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

inline Vector load_vector(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store_vector(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
inline Vector load_vector(const Bf16* from) {
  HalfWords bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return reinterpret_cast<Vector>(__builtin_convertvector(bits, Words) << 16);
}
// The bf16 next to each lane, ties to even, in the lane's low half; NaN stays NaN.
inline Words rounded_bits(Vector value) {
  const Words word = reinterpret_cast<Words>(value);
  const Words rounded = (word + 0x7fffU + ((word >> 16) & 1U)) >> 16;
  return value == value ? rounded : (word >> 16) | 0x40U;
}
inline void store_vector(Bf16* to, Vector value) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
  __builtin_memcpy(to, &rounded, sizeof(rounded));
#else
  const HalfWords narrow = __builtin_convertvector(rounded_bits(value), HalfWords);
  __builtin_memcpy(to, &narrow, sizeof(narrow));
#endif
}

// Two vectors at a time, the unit of element-wise kernels whose operands are all of one type T. Of bf16 the first
// holds the even elements, the second the odd ones: a shift and a mask take them apart, where elements in order would
// have to be widened.
constexpr std::int64_t kTwo = 2 * kLanes;
struct Two {
  Vector first, second;
};

inline Two load_two(const float* from) { return {load_vector(from), load_vector(from + kLanes)}; }
inline void store_two(float* to, const Two& x) {
  store_vector(to, x.first);
  store_vector(to + kLanes, x.second);
}
inline Two load_two(const Bf16* from) {
  Words pairs;
  __builtin_memcpy(&pairs, from, sizeof(pairs));
  return {reinterpret_cast<Vector>(pairs << 16), reinterpret_cast<Vector>(pairs & 0xffff0000U)};
}
inline Words interleaved(const Two& x) {
#if defined(__AVX512BF16__)
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (Words)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)x.second, (__m512)x.first));
#else
  return rounded_bits(x.first) | rounded_bits(x.second) << 16;
#endif
}
inline void store_two(Bf16* to, const Two& x) {
  const Words pairs = interleaved(x);
  __builtin_memcpy(to, &pairs, sizeof(pairs));
}

// The same past the caches, where the instruction set can; `to` at a multiple of 64 bytes.
#if defined(__AVX512F__)
inline void stream_two(float* to, const Two& x) {
  _mm512_stream_ps(to, (__m512)x.first);
  _mm512_stream_ps(to + kLanes, (__m512)x.second);
}
inline void stream_two(Bf16* to, const Two& x) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)interleaved(x));
}
#else
template <class T>
void stream_two(T* to, const Two& x) {
  store_two(to, x);
}
#endif
// Both vectors one after the other: what load_two() reads of floats.
template <bool kStream>
void store_ordered(float* to, const Two& x) {
  kStream ? stream_two(to, x) : store_two(to, x);
}
template <bool kStream>
void store_ordered(Bf16* to, const Two& x) {
#if defined(__AVX512BF16__)
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)x.second, (__m512)x.first);
  auto* const at = reinterpret_cast<__m512i*>(to);
  kStream ? _mm512_stream_si512(at, both) : _mm512_storeu_si512(at, both);
#else
  store_vector(to, x.first);
  store_vector(to + kLanes, x.second);
#endif
}
// Whether rows should be written past the caches: they are many and lie right.
inline bool past_caches(const void* rows, std::int64_t count, std::int64_t row_bytes) {
  return count * row_bytes > kStreamBytes && row_bytes % 64 == 0 && reinterpret_cast<std::uintptr_t>(rows) % 64 == 0;
}

// A row comes into the second-level cache.
template <class T>
void fetch_row(const T* row, std::int64_t width) {
  for (std::int64_t h = 0; h < width; h += 64 / static_cast<std::int64_t>(sizeof(T))) __builtin_prefetch(row + h, 0, 2);
}

// f(first element, load, store) for n elements, two vectors at a time, the last ones through memory of their own.
// `ahead` elements further on lies what is wanted next, and comes into the second-level cache: processors prefetch
// neither beyond a page nor from row to row. kStream: see stream_two().
struct WholeTwo {
  template <class T>
  Two load(const T* from) const {
    return load_two(from);
  }
  template <class T>
  Two load(const T* from, std::int64_t ahead) const {
    for (std::int64_t line = 0; line < kTwo * static_cast<std::int64_t>(sizeof(T)); line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(from + ahead) + line, 0, 2);
    }
    return load_two(from);
  }
  template <bool kStream = false, class T>
  void store(T* to, const Two& x) const {
    kStream ? stream_two(to, x) : store_two(to, x);
  }
  template <bool kStream, class T>
  void store_in_order(T* to, const Two& x) const {
    store_ordered<kStream>(to, x);
  }
};
struct PartOfTwo {
  std::int64_t elements;
  template <class T>
  Two load(const T* from, std::int64_t = 0) const {
    T copy[kTwo] = {};
    for (std::int64_t i = 0; i < elements; ++i) copy[i] = from[i];
    return load_two(copy);
  }
  template <bool kStream = false, class T>
  void store(T* to, const Two& x) const {
    T copy[kTwo];
    store_two(copy, x);
    for (std::int64_t i = 0; i < elements; ++i) to[i] = copy[i];
  }
  template <bool kStream, class T>
  void store_in_order(T* to, const Two& x) const {
    T copy[kTwo];
    store_ordered<false>(copy, x);
    for (std::int64_t i = 0; i < elements; ++i) to[i] = copy[i];
  }
};
template <class F>
inline void by_two(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  for (; i + kTwo <= n; i += kTwo) f(i, WholeTwo{});
  if (i < n) f(i, PartOfTwo{n - i});
}

// Elements in another type; in their own with the same bits. kStream: see stream_two().
template <bool kStream, class T>
void copy_elements(const T* from, T* to, std::int64_t n) {
  constexpr std::int64_t kEach = 4 / static_cast<std::int64_t>(sizeof(T));
  if (n % kEach != 0) {
    for (std::int64_t h = 0; h < n; ++h) to[h] = from[h];
    return;
  }
  by_two(n / kEach, [&](std::int64_t i, auto part) {
    part.template store<kStream>(reinterpret_cast<float*>(to) + i, part.load(reinterpret_cast<const float*>(from) + i));
  });
}
template <bool kStream>
void copy_elements(const Bf16* from, float* to, std::int64_t n) {
  std::int64_t h = 0;
  for (; h + kTwo <= n; h += kTwo) {
    store_ordered<kStream>(to + h, {load_vector(from + h), load_vector(from + h + kLanes)});
  }
  for (; h < n; ++h) to[h] = load(from[h]);
}
template <bool>
void copy_elements(const float* from, Bf16* to, std::int64_t n) {
  for (std::int64_t h = 0; h < n; ++h) store(to[h], from[h]);
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

inline IntVector lane_numbers() {
  IntVector lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// Transposes kLanes x kLanes 32-bit elements: blocks of kStep x kStep change places, from half the size down to one.
template <int kStep = kLanes / 2>
inline void transpose(IntVector* rows) {
  const IntVector lanes = lane_numbers();
  const IntVector upper = (lanes & kStep) != 0;
  const IntVector first = upper ? lanes + static_cast<std::int32_t>(kLanes - kStep) : lanes;
  const IntVector second = upper ? lanes + static_cast<std::int32_t>(kLanes) : lanes + kStep;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kStep) != 0) continue;
    const IntVector a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shuffle(a, b, first);
    rows[i + kStep] = __builtin_shuffle(a, b, second);
  }
  if constexpr (kStep > 1) transpose<kStep / 2>(rows);
}

// Over the lanes: halves meet until all lanes hold the result, always in the same order.
template <class Combine>
float across(Vector v, Combine combine) {
  const IntVector lanes = lane_numbers();
#pragma GCC unroll 4
  for (int distance = kLanes / 2; distance > 0; distance /= 2) v = combine(v, __builtin_shuffle(v, lanes ^ distance));
  return v[0];
}
inline float sum_of(Vector v) {
  return across(v, [](Vector a, Vector b) { return a + b; });
}
inline float largest_of(Vector v) {
  return across(v, [](Vector a, Vector b) { return larger(a, b); });
}

// 2^e = 2^floor(e) 2^f, f = e - floor(e): infinite and zero where it leaves the floats. 2^f by the polynomials of least
// relative error on [0, 1), fitted with Lawson's weights: 8e-8 with degree 5, 3e-6 with degree 4.
#if defined(__AVX512F__)
inline Vector rest_of(Vector e) {
  return (Vector)_mm512_reduce_ps((__m512)e, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
inline Vector scaled_by_power(Vector p, Vector e) { return (Vector)_mm512_scalef_ps((__m512)p, (__m512)e); }
inline Vector exp2_vector(Vector e) {
  const Vector f = rest_of(e);
  Vector p = f * 1.87757668e-3F + 8.98934014e-3F;
  p = p * f + 5.58263179e-2F;
  p = p * f + 2.40153617e-1F;
  p = p * f + 6.93153073e-1F;
  p = p * f + 1.0F;
  return scaled_by_power(p, e);
}
inline Vector exp2_rough(Vector e) {
  const Vector f = rest_of(e);
  Vector p = f * 1.35341680e-2F + 5.20114611e-2F;
  p = p * f + 2.41442756e-1F;
  p = p * f + 6.93003835e-1F;
  p = p * f + 1.0000026F;
  return scaled_by_power(p, e);
}
constexpr float kLog2E = 1.44269504F;
#endif

// e^x: relative error < 2e-7 + 6e-8 |x|.
inline Vector exp_vector(Vector x) {
#if defined(__AVX512F__)
  return exp2_vector(x * kLog2E);
#else
  const Vector low = x < -87.3F ? Vector{} - 87.3F : x;
  const Vector clamped = low > 88.0F ? Vector{} + 88.0F : low;
  const Vector shifted = clamped * 1.44269504F + 12582912.0F;
  const Vector n = shifted - 12582912.0F;
  const Vector r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;
  const IntVector exponent = (reinterpret_cast<IntVector>(shifted) - 0x4b400000 + 127) << 23;
  return x < -87.3F ? Vector{} : exp_polynomial(r) * reinterpret_cast<Vector>(exponent);
#endif
}

// 1 / (1 + e^-x) for a result in T: relative error < 7e-5 for bf16.
inline Vector sigmoid_for(float, Vector x) { return 1.0F / (1.0F + exp_vector(-larger(x, Vector{} - 88.0F))); }
inline Vector sigmoid_for(Bf16, Vector x) {
#if defined(__AVX512F__)
  return (Vector)_mm512_rcp14_ps((__m512)(1.0F + exp2_rough(x * -kLog2E)));
#else
  return sigmoid_for(0.0F, x);
#endif
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
