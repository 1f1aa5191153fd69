// Element types of tensors and their conversions.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace dropcycle {

enum class DType : std::uint8_t { f64, f32, bf16, i32 };

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

constexpr std::int64_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::i32:
      return 4;
  }
  return 0;
}

// "f64", "f32", "bf16", "i32".
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
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};

// The type of statistics, gradients and optimizer state that goes with weights and activations of type `compute`:
// f64 for f64, else f32.
constexpr DType accumulator_of(DType compute) { return compute == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace dropcycle
