// The operation graphs that cuDNN is given, interpreted on the CPU beside `reference` attention.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/ops/backends.hpp"
#include "graph_interpreter.hpp"

using namespace dropcycle;
using namespace dropcycle::cuda;

namespace {

constexpr double kTolerance = 0.008;  // of the root mean square; bf16 rounds p, ds and the results by up to 2^-9 each

struct Case {
  AttentionShape shape;
  bool documents = false, deterministic = false;
  std::int64_t padding = 0;  // columns of qkv that belong to nobody
};

std::vector<float> floats(const Tensor& x) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < x.elements(); ++i) {
    values.push_back(x.dtype == DType::bf16 ? static_cast<float>(x.as<BF16>()[i]) : x.as<float>()[i]);
  }
  return values;
}

// Root mean square of the difference over that of `want`.
double relative_error(const Tensor& got, const Tensor& want) {
  const auto a = floats(got), b = floats(want);
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

struct Errors {
  double out, lse, dqkv;
  double largest() const { return std::max({out, lse, dqkv}); }
};

// Attention of one case twice: by `reference`, and by the graphs as `change` leaves them.
class Both {
 public:
  explicit Both(const Case& c)
      : case_(c),
        s_(c.shape),
        width_(s_.qkv_width() + c.padding),
        qkv_(DType::bf16, {s_.tokens(), width_}),
        dout_(DType::bf16, {s_.tokens(), s_.heads * s_.head_size}) {
    for (const Tensor& x : {qkv_.view(), dout_.view()}) {
      for (std::int64_t i = 0; i < x.elements(); ++i) x.as<BF16>()[i] = BF16(normal_(random_));
    }
    first_ = OwnedTensor(DType::i32, {s_.tokens()});
    const std::int64_t document = 1 + s_.sequence / 3;
    for (std::int64_t t = 0; t < s_.tokens(); ++t) {
      first_.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(t % s_.sequence / document * document);
    }
  }

  template <class Change>
  Errors run(Change&& change) {
    const auto ops = make_reference_ops();
    const AttentionMask mask{case_.documents ? first_.view() : Tensor{}, {}};
    const Results want(s_, width_), got(s_, width_);
    ops->attention(s_, packed_heads(s_, qkv_), mask, want.out, want.lse);
    ops->attention_backward(s_, packed_heads(s_, qkv_), mask, want.out, want.lse, dout_, packed_heads(s_, want.dqkv));
    AttentionGraph forward = attention_forward_graph(options()), backward = attention_backward_graph(options());
    change(forward.graph);
    change(backward.graph);
    interpret(forward.graph, memory_of(forward, got.out, got.lse, got.dqkv));
    interpret(backward.graph, memory_of(backward, want.out, want.lse, got.dqkv));
    return {relative_error(got.out, want.out), relative_error(got.lse, want.lse), relative_error(got.dqkv, want.dqkv)};
  }

 private:
  struct Results {
    Results(const AttentionShape& s, std::int64_t width)
        : out(DType::bf16, {s.tokens(), s.heads * s.head_size}),
          lse(DType::f32, {s.tokens(), s.heads}),
          dqkv(DType::bf16, {s.tokens(), width}) {}
    OwnedTensor out, lse, dqkv;
  };

  AttentionGraphOptions options() const {
    const HeadStrides packed{s_.sequence * width_, s_.head_size, width_};
    const std::int64_t out_width = s_.heads * s_.head_size;
    const HeadStrides plain{s_.sequence * out_width, s_.head_size, out_width};
    AttentionGraphOptions o;
    o.shape = s_;
    o.q = o.k = o.v = o.dq = o.dk = o.dv = packed;
    o.out = o.dout = plain;
    o.lse = {s_.sequence * s_.heads, 1, s_.heads};
    o.documents = case_.documents;
    o.deterministic = case_.deterministic;
    return o;
  }

  std::map<std::int64_t, void*> memory_of(const AttentionGraph& g, const Tensor& out, const Tensor& lse,
                                          const Tensor& dqkv) {
    const auto at = [&](const Tensor& x, std::int64_t column) { return x.as<BF16>() + column; };
    const std::int64_t k = s_.heads * s_.head_size, v = k + s_.kv_heads * s_.head_size;
    scale_ = static_cast<float>(1 / std::sqrt(static_cast<double>(s_.head_size)));
    scratch_.assign(static_cast<std::size_t>(s_.tokens() * s_.heads * (s_.head_size + 1)), 0.0F);
    return {
        {g.q, at(qkv_, 0)},          {g.k, at(qkv_, k)},         {g.v, at(qkv_, v)},
        {g.out, out.data},           {g.lse, lse.data},          {g.first_key, first_.view().data},
        {g.scale, &scale_},          {g.lowest, &lowest_},       {g.one, &one_},
        {g.dout, dout_.view().data}, {g.dq, at(dqkv, 0)},        {g.dk, at(dqkv, k)},
        {g.dv, at(dqkv, v)},         {g.delta, scratch_.data()}, {g.dq_sum, scratch_.data() + s_.tokens() * s_.heads}};
  }

  Case case_;
  AttentionShape s_;
  std::int64_t width_;
  std::mt19937 random_{5};
  std::normal_distribution<float> normal_;
  OwnedTensor qkv_, dout_, first_;
  float scale_ = 0, lowest_ = kLowestScore, one_ = 1;
  std::vector<float> scratch_;
};

void unchanged(Graph&) {}

std::vector<Case> random_cases(int count) {
  std::mt19937 random(11);
  const auto up_to = [&](std::int64_t most) {
    return 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(most));
  };
  std::vector<Case> cases = {{{1, 67, 2, 1, 64}, true, true},
                             {{1, 45, 2, 2, 128}, false, false},
                             {{2, 33, 4, 2, 128}, true, true},
                             {{1, 1, 2, 1, 8}, true, false}};
  for (int i = 0; i < count; ++i) {
    const std::int64_t kv_heads = up_to(3);
    const AttentionShape shape{up_to(3), up_to(40), kv_heads * up_to(4), kv_heads, 8 * up_to(4)};
    cases.push_back({shape, random() % 2 == 0, random() % 2 == 0, static_cast<std::int64_t>(random() % 3)});
  }
  return cases;
}

}  // namespace

TEST_CASE("the graphs compute attention and its adjoint") {
  for (const Case& c : random_cases(24)) {
    INFO("B ", c.shape.batch, " S ", c.shape.sequence, " Nq ", c.shape.heads, " Nkv ", c.shape.kv_heads, " D ",
         c.shape.head_size, " documents ", c.documents, " deterministic ", c.deterministic);
    const Errors errors = Both(c).run(unchanged);
    CHECK(errors.out <= kTolerance);
    CHECK(errors.lse <= kTolerance);
    CHECK(errors.dqkv <= kTolerance);
  }
}

// cuDNN accepts all of these.
TEST_CASE("graphs that are well formed and wrong are told apart") {
  const auto each = [](Graph& graph, GraphMode mode, auto&& change) {
    for (GraphOperation& o : graph.operations) {
      if (o.mode == mode) change(o);
    }
  };
  const auto keys_as_queries = [&](Graph& graph) {
    each(graph, GraphMode::index, [](GraphOperation& o) { o.axis = 5 - o.axis; });
  };
  const auto later_keys = [&](Graph& graph) {
    each(graph, GraphMode::greater_equal, [](GraphOperation& o) { std::swap(o.inputs[0], o.inputs[1]); });
  };
  // a > b is not b >= a.
  const auto strictly_earlier_keys = [&](Graph& graph) {
    later_keys(graph);
    each(graph, GraphMode::select, [](GraphOperation& o) { std::swap(o.inputs[0], o.inputs[1]); });
  };
  const auto unscaled = [&](Graph& graph) {
    each(graph, GraphMode::multiply, [](GraphOperation& o) { o.mode = GraphMode::add; });
  };
  const auto heads_swapped = [](Graph& graph) { std::swap(graph.tensors[0].strides[1], graph.tensors[0].strides[2]); };
  for (const bool documents : {false, true}) {
    const Case c{{2, 37, 4, 2, 16}, documents, true};
    CHECK(Both(c).run(unchanged).largest() <= kTolerance);
    for (const auto& error : {Both(c).run(keys_as_queries), Both(c).run(later_keys), Both(c).run(strictly_earlier_keys),
                              Both(c).run(unscaled), Both(c).run(heads_swapped)}) {
      CHECK(!(error.out <= 5 * kTolerance));
      CHECK(!(error.dqkv <= 5 * kTolerance));
    }
  }
}

TEST_CASE("a graph that lacks memory or reads what was never written is refused") {
  AttentionGraphOptions o;
  o.shape = {1, 4, 2, 1, 8};
  o.q = o.k = o.v = {128, 8, 32};
  o.out = {64, 8, 16};
  o.lse = {8, 1, 2};
  AttentionGraph g = attention_forward_graph(o);
  CHECK_THROWS_WITH_AS(interpret(g.graph, {}), doctest::Contains("no memory"), Error);
  g.graph.operations.erase(g.graph.operations.begin());
  CHECK_THROWS_WITH_AS(interpret(g.graph, {}), doctest::Contains("before it is written"), Error);
}
