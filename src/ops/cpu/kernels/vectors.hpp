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
inline void store_two(Bf16* to, const Two& x) {
#if defined(__AVX512BF16__)
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x.first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x.second));
  const __m512i pairs = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
#else
  const Words pairs = rounded_bits(x.first) | rounded_bits(x.second) << 16;
#endif
  __builtin_memcpy(to, &pairs, sizeof(pairs));
}

// f(first element, load, store) for n elements, two vectors at a time, the last ones through memory of their own.
// `ahead` elements further on lies what is wanted next: processors prefetch neither beyond a page nor from row to row.
struct WholeTwo {
  template <class T>
  Two load(const T* from) const {
    return load_two(from);
  }
  template <class T>
  Two load(const T* from, std::int64_t ahead) const {
    for (std::int64_t line = 0; line < kTwo * static_cast<std::int64_t>(sizeof(T)); line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(from + ahead) + line);
    }
    return load_two(from);
  }
  template <class T>
  void store(T* to, const Two& x) const {
    store_two(to, x);
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
  template <class T>
  void store(T* to, const Two& x) const {
    T copy[kTwo];
    store_two(copy, x);
    for (std::int64_t i = 0; i < elements; ++i) to[i] = copy[i];
  }
};
template <class F>
inline void by_two(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  for (; i + kTwo <= n; i += kTwo) f(i, WholeTwo{});
  if (i < n) f(i, PartOfTwo{n - i});
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

// e^x with the bounds of exp_fast. With AVX-512 as 2^(x log2 e) = 2^n 2^f, n whole and |f| <= 1/2; x log2 e - n is
// taken with the product's exact bits, 2^f by the polynomial of degree 6 with the least relative error (2e-9, fitted
// with Lawson's weights).
inline Vector exp_vector(Vector x) {
#if defined(__AVX512F__)
  const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(88.0F), _mm512_max_ps(_mm512_set1_ps(-104.0F), (__m512)x));
  const __m512 log2e = _mm512_set1_ps(1.44269504F);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bounded, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector f = (Vector)_mm512_fmadd_ps(bounded, _mm512_set1_ps(1.92596299e-8F), _mm512_fmsub_ps(bounded, log2e, n));
  Vector p = f * 1.53533620e-4F + 1.33988747e-3F;
  p = p * f + 9.61843736e-3F;
  p = p * f + 5.55033247e-2F;
  p = p * f + 2.40226479e-1F;
  p = p * f + 6.93147203e-1F;
  p = p * f + 1.0F;
  return (Vector)_mm512_scalef_ps((__m512)p, n);
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

// e^x for what is rounded to bf16 afterwards: relative error < 1e-5.
inline Vector exp_rough(Vector x) {
#if defined(__AVX512F__)
  const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-104.0F), (__m512)x);
  const __m512 exponent = _mm512_mul_ps(bounded, _mm512_set1_ps(1.44269504F));
  const __m512 n = _mm512_roundscale_ps(exponent, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector f = (Vector)_mm512_sub_ps(exponent, n);
  Vector p = f * 9.58285322e-03F + 5.59064262e-02F;
  p = p * f + 2.40240986e-01F;
  p = p * f + 6.93124193e-01F;
  p = p * f + 1.0F;
  return (Vector)_mm512_scalef_ps((__m512)p, n);
#else
  return exp_vector(x);
#endif
}
// What T can hold of e^x.
inline Vector exp_for(float, Vector x) { return exp_vector(x); }
inline Vector exp_for(Bf16, Vector x) { return exp_rough(x); }

// 1 / (1 + e^-x) for a result in T; x < -88 counts as -88.
template <class T>
inline Vector sigmoid(Vector x) {
  const Vector divisor = 1.0F + exp_for(T{}, -larger(x, Vector{} - 88.0F));
#if defined(__AVX512F__)
  const Vector guess = (Vector)_mm512_rcp14_ps((__m512)divisor);  // 2^-14
  return guess + guess * (1.0F - divisor * guess);
#else
  return 1.0F / divisor;
#endif
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
