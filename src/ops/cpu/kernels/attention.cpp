// Attention with float products, for every instruction set.
#include "attention_backward.hpp"
#include "attention_forward.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

void attention_scratch(const AttentionArguments& a, bool backwards, std::int64_t threads, std::int64_t& bytes) {
  bytes = backwards ? backward_scratch_bytes<FloatDot>(a, threads) : forward_scratch_bytes<FloatDot>(a, threads);
}

void attention(Type type, const AttentionArguments& a) {
  with_type(type, [&]<class T>(T) { forward<FloatDot, T>(a); });
}

void attention_backward(Type type, const AttentionArguments& a) {
  with_type(type, [&]<class T>(T) { backward<FloatDot, T>(a); });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
