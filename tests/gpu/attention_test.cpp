// Flash attention at the sizes of real models, where whole waves of tiles run: against own kernels in f32, and twice
// for the same bits.
#include "../unit/ops_support.hpp"

using namespace dropcycle;
using dropcycle::test::root_mean_square;
using dropcycle::test::Run;
using dropcycle::test::tested_ops;

namespace {

void run_attention(Run& r, const AttentionShape& s, bool documents) {
  const std::int64_t width = s.heads * s.head_size;
  const Tensor qkv = r.normal(r.compute, {s.tokens(), s.qkv_width()});
  std::vector<std::int32_t> first;
  for (std::int64_t t = 0; t < s.tokens(); ++t) {
    first.push_back(static_cast<std::int32_t>(t % s.sequence / 700 * 700));
  }
  const AttentionMask mask{documents ? r.integers(first, {s.tokens()}) : Tensor{}, {}};
  const Tensor out = r.empty(r.compute, {s.tokens(), width}), lse = r.empty(r.acc, {s.tokens(), s.heads});
  r.ops.attention(s, packed_heads(s, qkv), mask, out, lse);
  const Tensor dout = r.normal(r.compute, {s.tokens(), width}), dqkv = r.empty(r.compute, qkv.shape);
  r.ops.attention_backward(s, packed_heads(s, qkv), mask, out, lse, dout, packed_heads(s, dqkv));
  r.output("out", out);
  r.output("lse", lse);
  r.output("dqkv", dqkv);
}

double size(const std::vector<double>& values) {
  return root_mean_square(values, std::vector<double>(values.size(), 0.0));
}

}  // namespace

TEST_CASE("thousands of tokens: close to f32, and the same bits twice") {
  for (const auto& [shape, documents] : {std::pair{AttentionShape{1, 2048, 8, 2, 128}, false},
                                         {AttentionShape{2, 1500, 4, 4, 64}, true},
                                         {AttentionShape{1, 4096, 4, 1, 128}, true}}) {
    Run exact(tested_ops(), DType::f32, DType::bf16), flash(tested_ops(), DType::bf16, DType::bf16),
        again(tested_ops(), DType::bf16, DType::bf16);
    run_attention(exact, shape, documents);
    run_attention(flash, shape, documents);
    run_attention(again, shape, documents);
    for (std::size_t i = 0; i < flash.outputs().size(); ++i) {
      const auto& [label, tensor] = flash.outputs()[i];
      const auto want = exact.read(exact.outputs()[i].second), found = flash.read(tensor);
      INFO(label, " S ", shape.sequence, " D ", shape.head_size);
      const double error = root_mean_square(found, want);
      CHECK(error <= 0.01 * size(want));
      CHECK(found == again.read(again.outputs()[i].second));
    }
  }
}
