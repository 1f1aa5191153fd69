// Attention of the cpu backend: blocks, odd sizes, grouped heads, document starts, the key/value cache.
#include "ops_support.hpp"

using namespace dropcycle;
using dropcycle::test::check_against_float64;
using dropcycle::test::Run;

TEST_CASE("attention and its adjoint") {
  struct Case {
    AttentionShape shape;
    bool documents;
  };
  for (const auto& [shape, documents] : {Case{{1, 1, 1, 1, 2}, false},
                                         {{2, 5, 6, 2, 6}, false},
                                         {{2, 64, 2, 2, 64}, false},
                                         {{1, 129, 3, 1, 64}, true},
                                         {{2, 200, 4, 2, 128}, true},
                                         {{1, 70, 2, 1, 34}, true},
                                         {{3, 65, 2, 2, 80}, false}}) {
    check_against_float64("attention", [&, s = shape, d = documents](Run& r) {
      const std::int64_t width = s.heads * s.head_size;
      const Tensor qkv = r.normal(r.compute, {s.tokens(), s.qkv_width()});
      const Tensor first = r.empty(DType::i32, {s.tokens()});
      for (std::int64_t t = 0; t < s.tokens(); ++t) {
        first.as<std::int32_t>()[t] = static_cast<std::int32_t>(t % s.sequence / 23 * 23 % 115);
      }
      const Tensor mask = d ? first : Tensor{};
      const Tensor out = r.empty(r.compute, {s.tokens(), width}), lse = r.empty(r.acc, {s.tokens(), s.heads});
      r.ops.attention(s, qkv, mask, out, lse);
      r.output("out", out);
      r.output("lse", lse);
      const Tensor dout = r.normal(r.compute, {s.tokens(), width}), dqkv = r.empty(r.compute, qkv.shape);
      r.ops.attention_backward(s, qkv, mask, out, lse, dout, dqkv);
      r.output("dqkv", dqkv);
    });
  }
}

TEST_CASE("attention with a key/value cache is attention on the last places") {
  for (const std::int64_t past : {0, 1, 63, 100}) {
    for (const std::int64_t fresh : {1, 3, 66}) {
      check_against_float64("attention_cached", [&](Run& r) {
        const AttentionShape s{1, fresh, 6, 2, 16};
        const std::int64_t capacity = past + fresh + 5;
        const Tensor qkv = r.normal(r.compute, {fresh, s.qkv_width()});
        const Tensor keys = r.normal(r.compute, {capacity, 32}), values = r.normal(r.compute, {capacity, 32});
        const Tensor out = r.empty(r.compute, {fresh, 96});
        r.ops.attention_cached(s, qkv, keys, values, past, out);
        r.output("out", out);
      });
    }
  }
}
