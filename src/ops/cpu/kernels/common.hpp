// What the kernels share: loading and storing of both element types, exp, chunking. Everything stands in the namespace
// of one instruction set, and no header with inline functions is included, so that code for a newer processor never
// reaches an older one through the linker.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

#define DROPCYCLE_KERNEL_DECLARATION(name, arguments) void name arguments;
DROPCYCLE_KERNELS(DROPCYCLE_KERNEL_DECLARATION)
#undef DROPCYCLE_KERNEL_DECLARATION

struct Bf16 {
  std::uint16_t bits;
};

inline float as_float(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline std::uint32_t as_bits(float value) { return __builtin_bit_cast(std::uint32_t, value); }

inline float load(float x) { return x; }
inline float load(Bf16 x) { return as_float(static_cast<std::uint32_t>(x.bits) << 16); }
inline void store(float& out, float value) { out = value; }
// Rounds to nearest, ties to even; NaN stays NaN.
inline void store(Bf16& out, float value) {
  const std::uint32_t word = as_bits(value);
  const std::uint32_t rounded = (word + 0x7fffU + ((word >> 16) & 1U)) >> 16;
  const std::uint32_t quiet = (word >> 16) | 0x40U;
  out.bits = static_cast<std::uint16_t>((word & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

// Calls f with a value of the C++ type that `type` stands for.
template <class F>
inline void with_type(Type type, F&& f) {
  if (type == Type::bf16) {
    f(Bf16{});
  } else {
    f(float{});
  }
}

// e^r for |r| <= ln(2)/2, on one value or on a vector of them: Taylor polynomial of degree 7.
template <class T>
inline T exp_polynomial(T r) {
  T p = r * (1.0F / 5040) + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  return p;
}

// e^x: x = n ln 2 + r, |r| <= ln(2)/2, e^r by exp_polynomial. Relative error < 2e-7 for -87.3 <= x <= 88;
// 0 below, e^88 (1.7e38) above, NaN for NaN.
inline float exp_fast(float x) {
  const float clamped = x < -87.3F ? -87.3F : (x > 88.0F ? 88.0F : x);
  const float shifted = clamped * 1.44269504F + 12582912.0F;  // 1.5 * 2^23: the low bits now hold n
  const float n = shifted - 12582912.0F;
  const float r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;
  const float power = as_float((as_bits(shifted) - 0x4b400000U + 127U) << 23);
  return x < -87.3F ? 0.0F : exp_polynomial(r) * power;
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Loops shorter than this stay on one thread.
constexpr std::int64_t kParallelElements = 16384;

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
