// Own kernels where the tests of Ops (tests/unit/ops_*_test.cpp, which run on them too) don't come: bits of random
// numbers, long columns, wide rows, rows that don't begin at 16 bytes, no rows.
#include <emulation.hpp>

#include "../../src/ops/cuda/kernels.hpp"
#include "../unit/ops_support.hpp"

using namespace dropcycle;
using dropcycle::test::check_against_float64;
using dropcycle::test::Run;
using dropcycle::test::tested_ops;

namespace {

// How many bytes of two arrays differ.
std::size_t differences(const Tensor& a, const Tensor& b) {
  std::size_t count = 0;
  for (std::int64_t i = 0; i < a.bytes(); ++i) {
    count += static_cast<const std::byte*>(a.data)[i] != static_cast<const std::byte*>(b.data)[i];
  }
  return count;
}

}  // namespace

TEST_CASE("normal numbers have the processor's bits") {
  const RandomStream random(11, Purpose::weight, "layers.3.mlp.gate_up");
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{(1ULL << 34) + 7}}) {
      for (const std::int64_t n : {0, 1, 2, 5, 4096, 60001}) {
        const OwnedTensor want(type, {n}), found(type, {n}, test::tested_ops().device());
        random.fill_normal(want, first, 0.5, 0.02);
        cuda::fill_normal(nullptr, random, first, 0.5, 0.02, found);
        CHECK(differences(want, found) == 0);
      }
    }
  }
}

TEST_CASE("jitter has the processor's bits") {
  const auto cpu = make_cpu_ops({});
  for (const DType type : {DType::f32, DType::bf16}) {
    Run r(tested_ops(), type, type);
    const Tensor x = r.normal(type, {37, 11}), found = r.empty(type, {37, 11}), want = r.empty(type, {37, 11});
    const RandomStream random(3, Purpose::jitter, "layers.1", 5);
    r.ops.jitter(x, random, 4321, 0.02, found);
    cpu->jitter(x, random, 4321, 0.02, want);
    CHECK(differences(want, found) == 0);
  }
}

TEST_CASE("sums over many rows, in parts") {
  check_against_float64("many rows", [](Run& r) {
    const std::int64_t rows = 2500, width = 40, experts = 5;
    const Tensor x = r.normal(r.acc, {rows, experts}), sums = r.normal(r.acc, {experts});
    r.ops.sum_rows(x, sums);
    r.output("sum_rows", sums);
    const Tensor dlogits = r.normal(r.acc, {rows, experts}), input = r.normal(r.compute, {rows, width});
    const Tensor w = r.normal(r.acc, {experts, width}), dx = r.normal(r.acc, {rows, width});
    const Tensor dw = r.normal(r.acc, {experts, width});
    r.ops.router_logits_backward(dlogits, input, w, dx, dw);
    r.output("dx", dx);
    r.output("dw", dw);
  });
  check_against_float64("a deep product", [](Run& r) {
    for (const std::int64_t experts : {3, 40}) {
      const Tensor x = r.normal(r.compute, {9, 1500}), w = r.normal(r.acc, {experts, 1500}, 0.1);
      const Tensor logits = r.empty(r.acc, {9, experts});
      r.ops.router_logits(x, w, logits);
      r.output("logits", logits);
    }
  });
}

TEST_CASE("RMSNorm of rows wider than the shared memory that every launch has") {
  check_against_float64("wide", [](Run& r) {
    const std::int64_t rows = 9, width = 16384;
    const Tensor x = r.normal(r.acc, {rows, width}), w = r.normal(r.acc, {width}),
                 y = r.empty(r.compute, {rows, width});
    const Tensor inv = r.empty(r.acc, {rows}), dy = r.normal(r.acc, {rows, width}), dx = r.empty(r.acc, {rows, width});
    const Tensor dw = r.normal(r.acc, {width});
    r.ops.add_rms_norm(x, {}, w, 1e-5, {}, y, inv);
    r.ops.rms_norm_backward(dy, x, w, inv, {}, dx, dw);
    for (const auto& [label, tensor] : {std::pair{"y", y}, {"inv_rms", inv}, {"dx", dx}, {"dw", dw}}) {
      r.output(label, tensor);
    }
  });
}

TEST_CASE("rows whose first element isn't at 16 bytes") {
  check_against_float64("unaligned", [](Run& r) {
    const std::int64_t rows = 5, width = 64;
    // The rows after the first element of a longer array.
    const auto shifted = [&](DType type, const Shape& shape) {
      const Tensor whole = r.normal(type, {shape.elements() + 1});
      return Tensor(static_cast<std::byte*>(whole.data) + size_bytes(type), type, shape);
    };
    const Tensor a = shifted(r.compute, {rows, width}), b = shifted(r.compute, {rows, width});
    const Tensor gate_up = shifted(r.compute, {rows, 2 * width}), product = shifted(r.compute, {rows, width});
    const Tensor index = r.indices({rows}, 0, rows), gathered = shifted(r.compute, {rows, width});
    r.ops.add(a, b, a);
    r.ops.swiglu(gate_up, product);
    r.ops.gather_rows(product, index, gathered);
    r.ops.fill_zero(b);
    const Tensor norm = shifted(r.compute, {rows, width}), inv = r.empty(r.acc, {rows});
    r.ops.add_rms_norm(shifted(r.acc, {rows, width}), {}, shifted(r.acc, {width}), 1e-5, {}, norm, inv);
    for (const auto& [label, tensor] : {std::pair{"sum", a}, {"zero", b}, {"gathered", gathered}, {"norm", norm}}) {
      r.output(label, tensor);
    }
  });
}

TEST_CASE("attention on heads of 256, and of one sequence's many queries on few keys") {
  for (const AttentionShape& s : {AttentionShape{1, 37, 4, 2, 256}, {2, 3, 8, 1, 96, 50}}) {
    check_against_float64("attention", [&](Run& r) {
      const std::int64_t width = s.heads * s.head_size, kv = s.kv_heads * s.head_size, keys = s.batch * s.key_count();
      const Tensor q = r.normal(r.compute, {s.tokens(), width}), k = r.normal(r.compute, {keys, kv});
      const Tensor v = r.normal(r.compute, {keys, kv}), out = r.empty(r.compute, {s.tokens(), width});
      const Tensor lse = r.empty(r.acc, {s.tokens(), s.heads}), dout = r.normal(r.compute, {s.tokens(), width});
      const Tensor dq = r.empty(r.compute, q.shape), dk = r.empty(r.compute, k.shape), dv = r.empty(r.compute, v.shape);
      r.ops.attention(s, {{q, 0}, {k, 0}, {v, 0}}, {}, out, lse);
      r.ops.attention_backward(s, {{q, 0}, {k, 0}, {v, 0}}, {}, out, lse, dout, {{dq, 0}, {dk, 0}, {dv, 0}});
      for (const auto& [label, tensor] : {std::pair{"out", out}, {"dq", dq}, {"dk", dk}, {"dv", dv}}) {
        r.output(label, tensor);
      }
    });
  }
}

TEST_CASE("routing to 256 experts") {
  check_against_float64("route", [](Run& r) {
    const Tensor logits = r.normal(r.acc, {13, 256}, 3), experts = r.empty(DType::i32, {13, 8});
    const Tensor weights = r.empty(r.acc, {13, 8}), p = r.empty(r.acc, {13, 256}), lse = r.empty(r.acc, {13});
    r.ops.route(logits, RouterMode::topk_softmax, experts, weights, p, lse);
    r.output("experts", experts);
    r.output("weights", weights);
    r.output("probabilities", p);
  });
  Run r(tested_ops(), DType::f32, DType::f32);
  const Tensor one = r.empty(DType::f32, {1});
  CHECK_THROWS_WITH_AS(r.ops.route(r.normal(DType::f32, {1, 257}), RouterMode::topk_softmax,
                                   r.empty(DType::i32, {1, 1}), one, r.empty(DType::f32, {1, 257}), one),
                       doctest::Contains("1 of 257 experts"), Error);
}

TEST_CASE("no rows are no work") {
  Run r(tested_ops(), DType::bf16, DType::bf16);
  const Tensor none = r.empty(DType::f32, {0, 16}), w = r.normal(DType::f32, {16}),
               rounded = r.empty(DType::bf16, {0, 16});
  const Tensor dw = r.normal(DType::f32, {16}), index = r.empty(DType::i32, {0}), inv = r.empty(DType::f32, {0});
  const auto before = r.read(dw);
  r.ops.add_rms_norm(none, {}, w, 1e-5, {}, rounded, inv);
  r.ops.rms_norm_backward(none, none, w, inv, {}, none, dw);
  r.ops.sum_rows(none, dw);
  r.ops.gather_rows(r.normal(DType::bf16, {3, 16}), index, rounded);
  r.ops.convert(none, rounded);
  r.ops.fill_zero(none);
  r.ops.router_logits_backward(r.empty(DType::f32, {0, 1}), rounded, w.reshaped({1, 16}), none, dw.reshaped({1, 16}));
  CHECK(r.read(dw) == before);
  CHECK(r.ops.squared_norm(none) == 0);
}
