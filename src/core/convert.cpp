#include "dropcycle/core/convert.hpp"

#include <cstring>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

double widen(double value) { return value; }
float widen(float value) { return value; }
float widen(BF16 value) { return static_cast<float>(value); }
float widen(F16 value) { return static_cast<float>(value); }

template <class To, class From>
To narrow(From value) {
  return static_cast<To>(value);
}
template <>
BF16 narrow<BF16, double>(double value) {
  return BF16(static_cast<float>(value));
}
template <>
F16 narrow<F16, double>(double value) {
  return F16(static_cast<float>(value));
}

// Compiled for several instruction sets; which one runs is found out once.
#if defined(__x86_64__)
#define DROPCYCLE_CLONES [[gnu::target_clones("default", "avx2", "arch=x86-64-v4")]]
#else
#define DROPCYCLE_CLONES
#endif

template <class From, class To>
[[gnu::always_inline]] inline void convert_all(const void* from, void* to, std::int64_t count) {
  const auto* source = static_cast<const From*>(from);
  auto* target = static_cast<To*>(to);
  for (std::int64_t i = 0; i < count; ++i) target[i] = narrow<To>(widen(source[i]));
}

template <class From>
[[gnu::always_inline]] inline void convert_from(const void* from, void* to, DType to_type, std::int64_t count) {
  switch (to_type) {
    case DType::f64:
      return convert_all<From, double>(from, to, count);
    case DType::f32:
      return convert_all<From, float>(from, to, count);
    case DType::bf16:
      return convert_all<From, BF16>(from, to, count);
    case DType::f16:
      return convert_all<From, F16>(from, to, count);
    case DType::i32:
    case DType::i16:
      break;
  }
  fail(Status::internal, "floating-point numbers can't be converted to integers");
}

DROPCYCLE_CLONES
void convert_differing(const void* from, DType from_type, void* to, DType to_type, std::int64_t count) {
  switch (from_type) {
    case DType::f64:
      return convert_from<double>(from, to, to_type, count);
    case DType::f32:
      return convert_from<float>(from, to, to_type, count);
    case DType::bf16:
      return convert_from<BF16>(from, to, to_type, count);
    case DType::f16:
      return convert_from<F16>(from, to, to_type, count);
    case DType::i32:
    case DType::i16:
      break;
  }
  fail(Status::internal, "integers can't be converted to floating-point numbers");
}

}  // namespace

void convert(const void* from, DType from_type, void* to, DType to_type, std::int64_t count) {
  if (from_type != to_type) return convert_differing(from, from_type, to, to_type, count);
  if (count > 0) std::memcpy(to, from, static_cast<std::size_t>(count * size_bytes(from_type)));
}

}  // namespace dropcycle
