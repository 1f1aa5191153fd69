// What attention's products of bf16 share (attention.hpp): how results become bf16 again.
#pragma once

#include "../kernels/attention.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

struct Bf16Numbers {
  using Element = Bf16;
  static constexpr std::int64_t kPair = 2;
  static Bf16 element(Bf16 value) { return value; }
  static void store(Bf16* out, Vector value) { store_vector(out, value); }
  static Vector stored(const Bf16* from) { return load_vector(from); }
  static void store_pairs(Bf16* out, const Vector* rows) { store_two(out, {rows[0], rows[1]}); }
  static Vector exp(Vector x) { return exp_vector(x); }
};

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
