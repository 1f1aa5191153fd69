// Attention: blocks, odd sizes, grouped heads, document starts, fewer queries than keys.
#include "ops_support.hpp"

using namespace dropcycle;
using dropcycle::test::check_against_float64;
using dropcycle::test::Run;

namespace {

std::vector<std::int32_t> document_starts(const AttentionShape& s, const std::vector<std::int32_t>& places) {
  std::vector<std::int32_t> first;
  for (std::int64_t t = 0; t < s.tokens(); ++t) {
    first.push_back(places[static_cast<std::size_t>(t % s.sequence)] / 23 * 23 % 115);
  }
  return first;
}

// Queries of their own, keys and values side by side, gradients of keys and values in acc or compute.
void check_apart(const AttentionShape& s, const std::vector<std::int32_t>& places, bool documents, bool mask_last) {
  check_against_float64("attention apart", [&](Run& r) {
    const std::int64_t q_width = s.heads * s.head_size, kv_width = s.kv_heads * s.head_size;
    const std::int64_t keys = s.batch * s.key_count();
    const Tensor q = r.normal(r.compute, {s.tokens(), q_width + 3}), kv = r.normal(r.compute, {keys, 2 * kv_width});
    const AttentionHeads x{{q, 3}, {kv, 0}, {kv, kv_width}};
    AttentionMask mask;
    if (documents) mask.first_key = r.integers(document_starts(s, places), {s.tokens()});
    if (mask_last) {
      std::vector<std::int32_t> last;
      for (std::int64_t b = 0; b < s.batch; ++b) last.insert(last.end(), places.begin(), places.end());
      mask.last_key = r.integers(last, {s.tokens()});
    }
    const Tensor out = r.empty(r.compute, {s.tokens(), q_width}), lse = r.empty(r.acc, {s.tokens(), s.heads});
    const Tensor again = r.empty(r.compute, out.shape);
    r.ops.attention(s, x, mask, out, lse);
    r.ops.attention(s, x, mask, again, {});
    r.output("out", out);
    r.output("out without lse", again);
    r.output("lse", lse);
    const Tensor dout = r.normal(r.compute, out.shape);
    for (const DType type : {r.compute, r.acc}) {
      const Tensor dq = r.empty(r.compute, {s.tokens(), q_width}), dkv = r.empty(type, {keys, 2 * kv_width + 1});
      r.ops.fill_zero(dkv);
      r.ops.attention_backward(s, x, mask, out, lse, dout, {{dq, 0}, {dkv, 1}, {dkv, kv_width + 1}});
      r.output("dq", dq);
      r.output("dkv", dkv);
    }
  });
}

}  // namespace

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
      std::vector<std::int32_t> first;
      for (std::int64_t t = 0; t < s.tokens(); ++t) {
        first.push_back(static_cast<std::int32_t>(t % s.sequence / 23 * 23 % 115));
      }
      const AttentionMask mask{d ? r.integers(first, {s.tokens()}) : Tensor{}, {}};
      const Tensor out = r.empty(r.compute, {s.tokens(), width}), lse = r.empty(r.acc, {s.tokens(), s.heads});
      r.ops.attention(s, packed_heads(s, qkv), mask, out, lse);
      r.output("out", out);
      r.output("lse", lse);
      const Tensor dout = r.normal(r.compute, {s.tokens(), width}), dqkv = r.empty(r.compute, qkv.shape);
      r.ops.attention_backward(s, packed_heads(s, qkv), mask, out, lse, dout, packed_heads(s, dqkv));
      r.output("dqkv", dqkv);
    });
  }
}

TEST_CASE("the last queries of more keys") {
  for (const std::int64_t past : {1, 2, 63, 100}) {
    for (const std::int64_t queries : {1, 3, 66}) {
      std::vector<std::int32_t> places;
      for (std::int64_t i = 0; i < queries; ++i) places.push_back(static_cast<std::int32_t>(past + i));
      check_apart({2, queries, 6, 2, 16, past + queries}, places, past > 1, false);
    }
  }
}

TEST_CASE("queries at any places of the keys: two parts of a sequence") {
  const auto parts = [](std::int32_t first, std::int32_t second, std::int32_t count) {
    std::vector<std::int32_t> places;
    for (const std::int32_t begin : {first, second}) {
      for (std::int32_t i = 0; i < count; ++i) places.push_back(begin + i);
    }
    return places;
  };
  for (const bool documents : {false, true}) {
    check_apart({2, 10, 4, 2, 8, 20}, parts(0, 15, 5), documents, true);
    check_apart({1, 74, 3, 1, 34, 111}, parts(37, 74, 37), documents, true);
    check_apart({2, 128, 2, 2, 64, 256}, parts(0, 192, 64), documents, true);
    check_apart({1, 46, 2, 1, 16, 138}, parts(23, 92, 23), documents, true);
  }
}

TEST_CASE("columns of one matrix become columns of another, converted") {
  for (const std::int64_t rows : {0, 1, 7, 600}) {
    check_against_float64("copy_columns", [&](Run& r) {
      const Tensor x = r.normal(r.compute, {rows, 61}), wide = r.normal(r.acc, {rows, 80});
      r.ops.copy_columns({x, 5}, {wide, 17}, 40);
      r.output("widened", wide);
      const Tensor back = r.normal(r.compute, {rows, 33});
      r.ops.copy_columns({wide, 2}, {back, 1}, 32);
      r.output("narrowed", back);
    });
  }
}
