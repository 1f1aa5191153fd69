// Attention of bf16 tensors with vdpbf16ps: pairs of bf16 multiplied and added to a float sum, 32 products an
// instruction. Compiled for AVX-512 BF16 only.
#include <immintrin.h>

#include "../kernels/attention_backward.hpp"
#include "../kernels/attention_forward.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

struct Bf16Dot {
  using Element = Bf16;
  using Operand = __m512bh;
  static constexpr std::int64_t kPair = 2;
  static Operand packed(const Bf16* b) { return (__m512bh)_mm512_loadu_si512(b); }
  static Operand spread(const Bf16* a) {
    std::int32_t pair;
    __builtin_memcpy(&pair, a, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vector multiply_add(Operand a, Operand b, Vector sum) { return (Vector)_mm512_dpbf16_ps((__m512)sum, a, b); }
  static Bf16 element(Bf16 value) { return value; }
  static void store(Bf16* out, Vector value) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
    __builtin_memcpy(out, &rounded, sizeof(rounded));
  }
  static Vector stored(const Bf16* from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
    return (Vector)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void store_pairs(Bf16* out, const Vector* rows) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)rows[0]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)rows[1]));
    _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  // 2^(x log2 e) = 2^n 2^f with n whole and |f| <= 1/2; 2^f by the polynomial of degree 5 with the least relative error
  // (1e-7, fitted with Lawson's weights).
  static Vector exp(Vector x) {
    const __m512 exponent = _mm512_mul_ps((__m512)x, _mm512_set1_ps(1.44269504F));
    const __m512 n = _mm512_roundscale_ps(exponent, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vector f = (Vector)_mm512_sub_ps(exponent, n);
    Vector p = f * 1.32647220e-3F + 9.67151300e-3F;
    p = p * f + 5.55073376e-2F;
    p = p * f + 2.40222421e-1F;
    p = p * f + 6.93146978e-1F;
    p = p * f + 1.0F;
    return (Vector)_mm512_scalef_ps((__m512)p, n);
  }
};

}  // namespace

void attention_bf16_scratch(const AttentionArguments& a, bool backwards, std::int64_t threads, std::int64_t& bytes) {
  bytes = backwards ? backward_scratch_bytes<Bf16Dot>(a, threads) : forward_scratch_bytes<Bf16Dot>(a, threads);
}

void attention_bf16(const AttentionArguments& a) { forward<Bf16Dot, Bf16>(a); }

void attention_bf16_backward(const AttentionArguments& a) { backward<Bf16Dot, Bf16>(a); }

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
