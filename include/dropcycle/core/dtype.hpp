// Element types of tensors and their conversions.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace dropcycle {

// f16 is a type of storage only: files hold it, nothing computes with it. i16: what bf16 leaves of a float (below).
enum class DType : std::uint8_t { f64, f32, bf16, i32, f16, i16 };

// bfloat16: the upper half of an IEEE binary32.
struct BF16 {
  std::uint16_t bits = 0;

  BF16() = default;
  // Rounds to nearest, ties to even; NaN stays NaN.
  explicit BF16(float value) {
    std::uint32_t word = std::bit_cast<std::uint32_t>(value);
    if ((word & 0x7fffffffU) > 0x7f800000U) {
      bits = static_cast<std::uint16_t>((word >> 16) | 0x40U);
    } else {
      word += 0x7fffU + ((word >> 16) & 1U);
      bits = static_cast<std::uint16_t>(word >> 16);
    }
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

// IEEE binary16: sign, 5 exponent bits (bias 15), 10 fraction bits.
struct F16 {
  std::uint16_t bits = 0;

  F16() = default;
  // Rounds to nearest, ties to even; above 65504 (where it would round up) is infinity, NaN stays NaN.
  explicit F16(float value) {
    const std::uint32_t word = std::bit_cast<std::uint32_t>(value), sign = (word >> 16) & 0x8000U;
    const std::uint32_t magnitude = word & 0x7fffffffU;
    std::uint32_t half = 0;
    if (magnitude > 0x7f800000U) {
      half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
    } else if (magnitude >= 0x477ff000U) {  // 65520, halfway to what would be next
      half = 0x7c00U;
    } else if (magnitude < 0x38800000U) {  // below 2^-14 the steps are 2^-24, as those of a float in [0.5, 1)
      half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
    } else {
      half = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - 0x38000000U) >> 13;
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }
  explicit operator float() const {
    const std::uint32_t sign = (bits & 0x8000U) << 16U, exponent = (bits >> 10U) & 31U, fraction = bits & 0x3ffU;
    if (exponent == 0) {  // fraction * 2^-24
      const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
      return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
    }
    const std::uint32_t wide = exponent == 31 ? 255U : exponent + 112U;
    return std::bit_cast<float>(sign | (wide << 23U) | (fraction << 13U));
  }
};

constexpr std::int64_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16:
      return 2;
    case DType::i32:
      return 4;
  }
  return 0;
}

// "f64", "f32", "bf16", "i32", "f16", "i16".
std::string_view name(DType dtype);
// The inverse of name(); throws Error{usage} for anything else.
DType parse_dtype(std::string_view text);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<F16> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<std::int16_t> {
  static constexpr DType value = DType::i16;
};

// A master weight in two halves, with all its bits: bits(master) = 2^16 bits(weight) + low. So the weight is the master
// rounded to nearest, ties away from zero, and nothing is kept twice. NaN stays NaN, without its lower bits.
struct MasterHalves {
  BF16 weight;
  std::int16_t low = 0;

  explicit MasterHalves(float master) {
    std::uint32_t word = std::bit_cast<std::uint32_t>(master);
    if ((word & 0x7fffffffU) > 0x7f800000U) word = (word & 0xffff0000U) | 0x400000U;
    low = static_cast<std::int16_t>(word & 0xffffU);
    weight.bits = static_cast<std::uint16_t>((word + 0x8000U) >> 16);
  }
  MasterHalves(BF16 weight_, std::int16_t low_) : weight(weight_), low(low_) {}
  float master() const {
    const auto rest = static_cast<std::uint32_t>(static_cast<std::int32_t>(low));
    return std::bit_cast<float>((static_cast<std::uint32_t>(weight.bits) << 16) + rest);
  }
};

// The type of statistics, gradients and optimizer state that goes with weights and activations of type `compute`:
// f64 for f64, else f32.
constexpr DType accumulator_of(DType compute) { return compute == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace dropcycle
