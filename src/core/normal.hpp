// The normal quantile in pieces that the scalar and the vectorised generator share: the same operations in the same
// order, so that both give the same bits. Everything is inlined, to be compiled for several instruction sets, and by
// nvcc for GPUs, which take constants from inside functions only.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define DROPCYCLE_INLINE __host__ __device__ __forceinline__
#define DROPCYCLE_UNROLL _Pragma("unroll")
#else
#define DROPCYCLE_INLINE [[gnu::always_inline]] inline
#define DROPCYCLE_UNROLL _Pragma("GCC unroll 12")
#endif

namespace dropcycle::normal {

inline constexpr double kCentral = 0.425;  // |u - 1/2| up to here is central

template <std::size_t N>
DROPCYCLE_INLINE double polynomial(const double (&coefficients)[N], double x) {
  double value = coefficients[N - 1];
  DROPCYCLE_UNROLL
  for (std::size_t i = 1; i < N; ++i) value = value * x + coefficients[N - 1 - i];
  return value;
}

// The exponent field of a positive normal x, less its bias, as a double.
DROPCYCLE_INLINE double exponent_of(std::uint64_t bits) {
  return std::bit_cast<double>((bits >> 52) | 0x4330000000000000ULL) - (4503599627370496.0 + 1023.0);
}

// log(x) for normal x > 0 with + - * / only: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1)).
DROPCYCLE_INLINE double portable_log(double x) {
  constexpr double kOdd[] = {1.0,        1.0 / 3.0,  1.0 / 5.0,  1.0 / 7.0,  1.0 / 9.0,  1.0 / 11.0,
                             1.0 / 13.0, 1.0 / 15.0, 1.0 / 17.0, 1.0 / 19.0, 1.0 / 21.0, 1.0 / 23.0};
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const double whole = std::bit_cast<double>((bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL);
  const bool large = whole > 1.4142135623730951;
  const double mantissa = large ? whole * 0.5 : whole;
  const double exponent = exponent_of(bits) + (large ? 1.0 : 0.0);
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double s2 = s * s;
  double series = 0.0;
  DROPCYCLE_UNROLL
  for (std::size_t i = 0; i < 12; ++i) series = series * s2 + kOdd[11 - i];
  return exponent * 0.6931471805599453 + 2.0 * s * series;
}

// Wichura's PPND16 (Applied Statistics 37, 1988): the central part, the tails, the far tails.
// The quantile of 1/2 + q for |q| <= kCentral.
DROPCYCLE_INLINE double central(double q) {
  constexpr double kCentralTop[] = {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                                    1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                                    3.3430575583588128105e4, 2.5090809287301226727e3};
  constexpr double kCentralBottom[] = {1.0,
                                       4.2313330701600911252e1,
                                       6.8718700749205790830e2,
                                       5.3941960214247511077e3,
                                       2.1213794301586595867e4,
                                       3.9307895800092710610e4,
                                       2.8729085735721942674e4,
                                       5.2264952788528545610e3};
  const double r = 0.180625 - q * q;
  return q * polynomial(kCentralTop, r) / polynomial(kCentralBottom, r);
}

// Minus the quantile of p < 1/2 - kCentral, for sqrt(-log p) <= 5: for all p above 1.4e-11.
DROPCYCLE_INLINE double tail(double p) {
  constexpr double kTailTop[] = {1.42343711074968357734e0,  4.63033784615654529590e0, 5.76949722146069140550e0,
                                 3.64784832476320460504e0,  1.27045825245236838258e0, 2.41780725177450611770e-1,
                                 2.27238449892691845833e-2, 7.74545014278341407640e-4};
  constexpr double kTailBottom[] = {1.0,
                                    2.05319162663775882187e0,
                                    1.67638483018380384940e0,
                                    6.89767334985100004550e-1,
                                    1.48103976427480074590e-1,
                                    1.51986665636164571966e-2,
                                    5.47593808499534494600e-4,
                                    1.05075007164441684324e-9};
  const double r = std::sqrt(-portable_log(p)) - 1.6;
  return polynomial(kTailTop, r) / polynomial(kTailBottom, r);
}

// The same for r = sqrt(-log p) > 5.
DROPCYCLE_INLINE double far_tail(double r) {
  constexpr double kFarTop[] = {6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,
                                2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                2.71155556874348757815e-5, 2.01033439929228813265e-7};
  constexpr double kFarBottom[] = {1.0,
                                   5.99832206555887937690e-1,
                                   1.36929880922735805310e-1,
                                   1.48753612908506148525e-2,
                                   7.86869131145613259100e-4,
                                   1.84631831751005468180e-5,
                                   1.42151175831644588870e-7,
                                   2.04426310338993978564e-15};
  return polynomial(kFarTop, r - 5.0) / polynomial(kFarBottom, r - 5.0);
}

}  // namespace dropcycle::normal
