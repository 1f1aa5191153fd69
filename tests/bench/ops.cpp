// Micro benchmarks of the cpu backend's operations, bf16: rates in GFLOP/s (products, attention) or GB/s (the rest).
#include <benchmark/benchmark.h>

#include <numeric>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/ops/ops.hpp"

using namespace dropcycle;

namespace {

Ops& ops() {
  static const auto backend = make_ops("cpu");
  return *backend;
}

OwnedTensor normal(DType type, const Shape& shape) {
  OwnedTensor tensor(type, shape);
  RandomStream(1, Purpose::test, "bench").fill_normal(tensor.view(), 0, 0, 1);
  return tensor;
}

void flops(benchmark::State& state, double per_iteration) {
  state.counters["GFLOP/s"] = benchmark::Counter(1e-9 * per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

void linear(benchmark::State& state) {
  const std::int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const auto x = normal(DType::bf16, {rows, in}), w = normal(DType::bf16, {out, in}),
             y = normal(DType::bf16, {rows, out});
  const OwnedTensor dw(DType::f32, {out, in});
  for (auto _ : state) {
    if (state.range(3) == 0) ops().linear(x, {w, 1 + (1UL << 60)}, y);
    if (state.range(3) == 1) ops().linear_dx(y, {w, 1 + (1UL << 60)}, x);
    if (state.range(3) == 2) ops().linear_dw(y, x, dw);
  }
  flops(state, 2.0 * static_cast<double>(rows * in * out));
}
BENCHMARK(linear)
    ->ArgsProduct({{4096}, {256, 1024}, {256, 2048}, {0, 1, 2}})
    ->ArgsProduct({{4096}, {512}, {4096}, {0, 1, 2}})
    ->ArgsProduct({{1024}, {256}, {16384}, {0, 1, 2}});

void grouped(benchmark::State& state) {
  const std::int64_t experts = 8, rows = 8192, in = state.range(2), out = state.range(3);
  const std::vector<std::int64_t> even{0, 1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192};
  const std::vector<std::int64_t> uneven{0, 1001, 2055, 3040, 4113, 5097, 6166, 7191, 8192};
  const auto& offsets = state.range(1) == 0 ? even : uneven;
  const auto x = normal(DType::bf16, {rows, in}), w = normal(DType::bf16, {experts, out, in}),
             y = normal(DType::bf16, {rows, out});
  const OwnedTensor dw(DType::f32, {experts, out, in});
  for (auto _ : state) {
    if (state.range(0) == 0) ops().grouped_linear(x, offsets, {w, 1 + (1UL << 60)}, y);
    if (state.range(0) == 1) ops().grouped_linear_dx(y, offsets, {w, 1 + (1UL << 60)}, x);
    if (state.range(0) == 2) ops().grouped_linear_dw(y, x, offsets, dw);
  }
  flops(state, 2.0 * static_cast<double>(rows * in * out));
}
BENCHMARK(grouped)->ArgsProduct({{0, 1, 2}, {0, 1}, {256}, {2048}})->ArgsProduct({{0, 1, 2}, {0, 1}, {1024}, {256}});

void attention(benchmark::State& state) {
  const bool backward = state.range(0) == 1;
  const AttentionShape s{state.range(1), state.range(2), state.range(3), state.range(3), 64};
  const auto qkv = normal(DType::bf16, {s.tokens(), s.qkv_width()});
  const auto out = normal(DType::bf16, {s.tokens(), s.heads * 64}),
             dout = normal(DType::bf16, {s.tokens(), s.heads * 64});
  const OwnedTensor dqkv(DType::bf16, {s.tokens(), s.qkv_width()}), lse(DType::f32, {s.tokens(), s.heads});
  const AttentionHeads x = packed_heads(s, qkv), dx = packed_heads(s, dqkv);
  ops().attention(s, x, {}, out, lse);
  for (auto _ : state) {
    if (backward) {
      ops().attention_backward(s, x, {}, out, lse, dout, dx);
    } else {
      ops().attention(s, x, {}, out, lse);
    }
  }
  // Two products forward and five backward, half of the square.
  flops(state, (backward ? 5 : 2) * static_cast<double>(s.tokens() * s.heads * s.sequence * s.head_size));
}
BENCHMARK(attention)->ArgsProduct({{0, 1}, {8}, {512}, {4}})->ArgsProduct({{0, 1}, {4}, {1024}, {8}});

void bytes(benchmark::State& state, std::int64_t per_iteration) {
  state.SetBytesProcessed(state.iterations() * per_iteration);
}

void swiglu(benchmark::State& state) {
  const auto x = normal(DType::bf16, {4096, 2048}), dy = normal(DType::bf16, {4096, 1024});
  const OwnedTensor dx(DType::bf16, {4096, 2048}), y(DType::bf16, {4096, 1024});
  for (auto _ : state) state.range(0) == 0 ? ops().swiglu(x, y) : ops().swiglu_backward(dy, x, dx, y);
  bytes(state, (state.range(0) == 0 ? 3 : 6) * 4096 * 1024 * 2);
}
BENCHMARK(swiglu)->DenseRange(0, 1);

void cross_entropy(benchmark::State& state) {
  const auto logits = normal(DType::f32, {1024, 16384});
  const OwnedTensor targets(DType::i32, {1024}), losses(DType::f32, {1024}), dlogits(DType::bf16, {1024, 16384});
  for (auto _ : state) ops().cross_entropy(logits, targets, 1, losses, dlogits);
  bytes(state, 1024 * 16384 * 6);
}
BENCHMARK(cross_entropy);

void rms_norm(benchmark::State& state) {
  const Shape shape{4096, 512};
  const auto x = normal(DType::f32, shape), delta = normal(DType::f32, shape), dy = normal(DType::f32, shape),
             w = normal(DType::f32, {512});
  const OwnedTensor sum(DType::f32, shape), y(DType::bf16, shape), inverse(DType::f32, {4096}), dw(DType::f32, {512});
  for (auto _ : state) {
    if (state.range(0) == 0) ops().add_rms_norm(x, delta, w, 1e-5, sum, y, inverse);
    if (state.range(0) == 1) ops().rms_norm_backward(dy, x, w, inverse, sum, sum, dw);
  }
  bytes(state, 14 * 4096 * 512);
}
BENCHMARK(rms_norm)->DenseRange(0, 1);

void adamw(benchmark::State& state) {
  const std::int64_t n = 1 << 24;
  const auto gradient = normal(DType::f32, {n}), master = normal(DType::f32, {n});
  const OwnedTensor m(DType::f32, {n}), v(DType::f32, {n}), weight(DType::bf16, {n});
  for (auto _ : state) ops().adamw({.learning_rate = 1e-4}, gradient, master, m, v, weight);
  bytes(state, n * 30);
}
BENCHMARK(adamw);

}  // namespace

BENCHMARK_MAIN();
