// Conversions between the floating element types.
#pragma once

#include <cstdint>

#include "dropcycle/core/dtype.hpp"

namespace dropcycle {

// to[i] = from[i] for `count` elements; the ranges don't overlap. Narrowing rounds to nearest, ties to even; f64 goes
// to bf16 and f16 through f32, so that a bf16 copy is the same whether it was made from f64 or from its f32 copy.
// Throws Error{internal} for i32 unless both types are i32.
void convert(const void* from, DType from_type, void* to, DType to_type, std::int64_t count);

}  // namespace dropcycle
