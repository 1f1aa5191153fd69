// Attention of bf16 tensors with vdpbf16ps: pairs of bf16 multiplied and added to a float sum, 32 products an
// instruction. Compiled for AVX-512 BF16 only.
#include <immintrin.h>

#include "../kernels/attention_backward.hpp"
#include "../kernels/attention_forward.hpp"
#include "bf16_numbers.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

struct Bf16Dot : Bf16Numbers, VectorProducts {
  using Operand = __m512bh;
  static Operand packed(const Bf16* b) { return (__m512bh)_mm512_loadu_si512(b); }
  static Operand spread(const Bf16* a) {
    std::int32_t pair;
    __builtin_memcpy(&pair, a, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vector multiply_add(Operand a, Operand b, Vector sum) { return (Vector)_mm512_dpbf16_ps((__m512)sum, a, b); }
  static constexpr std::int64_t kDepthStep = kPair;
};

}  // namespace

void attention_bf16_scratch(const AttentionArguments& a, bool backwards, std::int64_t threads, std::int64_t& bytes) {
  bytes = backwards ? backward_scratch_bytes<Bf16Dot>(a, threads) : forward_scratch_bytes<Bf16Dot>(a, threads);
}

void attention_bf16(const AttentionArguments& a) { forward<Bf16Dot, Bf16>(a); }

void attention_bf16_backward(const AttentionArguments& a) { backward<Bf16Dot, Bf16>(a); }

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
