// What only the cpu backend has: checked indices, instruction sets, packed copies of weights and their versions.
#include <malloc.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "ops_support.hpp"

using namespace dropcycle;

namespace {

Ops& cpu_ops() { return dropcycle::test::tested_ops(); }

}  // namespace

TEST_CASE("indices out of range and unknown instruction sets are refused") {
  std::vector<float> w(6), y(2);
  const Tensor matrix(w.data(), {3, 2}), out(y.data(), {1, 2});
  for (std::int32_t index : {-1, 3}) CHECK_THROWS_AS(cpu_ops().gather_rows(matrix, Tensor(&index, {1}), out), Error);
  std::int32_t token = 3;
  CHECK_THROWS_AS(cpu_ops().embedding(Tensor(&token, {1}), matrix, out), Error);
  const char* set = std::getenv("DROPCYCLE_ISA");
  const std::string before = set == nullptr ? "native" : set;
  setenv("DROPCYCLE_ISA", "sse9", 1);
  CHECK_THROWS_WITH_AS(make_cpu_ops({}), "DROPCYCLE_ISA=sse9: unknown: expected baseline, avx2, avx512 or native",
                       Error);
  setenv("DROPCYCLE_ISA", before.c_str(), 1);
}

TEST_CASE("row counts of experts that change every step need no more memory once their pieces are known") {
  const std::int64_t experts = 4, rows = 500, in = 64, out = 128;
  OwnedTensor x(DType::f32, {rows, in}), w(DType::f32, {experts, out, in}), y(DType::f32, {rows, out});
  OwnedTensor dw(DType::f32, {experts, out, in});
  const std::uint64_t version = next_weight_version();
  std::uint64_t draw = 0;
  const auto steps = [&](int count) {
    for (int step = 0; step < count; ++step) {
      std::vector<std::int64_t> offsets{0, 0, 0, 0, rows};
      for (std::size_t e = 1; e < 4; ++e) {
        offsets[e] = RandomStream(1, Purpose::test, "offsets").bits(draw++) % static_cast<std::uint64_t>(rows);
      }
      std::ranges::sort(offsets);
      cpu_ops().grouped_linear(x, offsets, {w, version}, y);
      cpu_ops().grouped_linear_dx(y, offsets, {w, version}, x);
      cpu_ops().grouped_linear_dw(y, x, offsets, dw);
    }
    const auto memory = mallinfo2();
    return memory.uordblks + memory.hblkhd;
  };
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto before = steps(300);
  CHECK(steps(60) < before + 4096);  // a primitive or a row of a weight would be more
  omp_set_num_threads(threads);
}

TEST_CASE("many rows, which are written past the caches, have the bits of few") {
  constexpr std::int64_t kRows = 2304, kWidth = 1024, kFew = kRows / 4;
  std::deque<OwnedTensor> memory;
  const auto empty = [&](DType type, std::int64_t width) -> Tensor {
    return memory.emplace_back(type, Shape{kRows, width}).view();
  };
  const auto normal = [&](DType type, std::int64_t width) {
    const Tensor x = empty(type, width);
    cpu_ops().fill_normal(RandomStream(1, Purpose::test, "rows"), memory.size() * (1 << 24), 0, 1, x);
    return x;
  };
  const Tensor gate_up = normal(DType::bf16, 2 * kWidth), dy = normal(DType::bf16, kWidth);
  const Tensor x = normal(DType::f32, kWidth), delta = normal(DType::f32, kWidth), m = normal(DType::f32, kWidth);
  const Tensor w = normal(DType::f32, kWidth).rows(0, 1).reshaped({kWidth});
  const Tensor targets = empty(DType::i32, 1).reshaped({kRows});
  const Tensor places = empty(DType::i32, 1), weights = normal(DType::f32, 1);
  for (std::int64_t t = 0; t < kRows; ++t) {
    targets.as<std::int32_t>()[t] = static_cast<std::int32_t>(t * 31 % kWidth);
    places.as<std::int32_t>()[t] = static_cast<std::int32_t>(t * 31 % kRows);
  }
  // Results of some rows at a time.
  const auto results = [&](std::int64_t some) {
    std::vector<Tensor> out = {empty(DType::bf16, kWidth), empty(DType::bf16, 2 * kWidth), empty(DType::bf16, kWidth),
                               empty(DType::f32, kWidth),  empty(DType::bf16, kWidth),     empty(DType::f32, 1),
                               empty(DType::f32, 1),       empty(DType::bf16, kWidth),     empty(DType::i16, kWidth),
                               empty(DType::f32, kWidth),  empty(DType::f32, kWidth),      empty(DType::bf16, kWidth),
                               empty(DType::bf16, kWidth), empty(DType::f32, kWidth),      empty(DType::f32, kWidth),
                               empty(DType::bf16, kWidth), empty(DType::f32, 1),           empty(DType::bf16, kWidth),
                               empty(DType::f32, kWidth),  empty(DType::f32, kWidth)};
    for (const std::size_t state : {8, 9, 11}) {
      std::memcpy(out[state].data, state == 11 ? dy.data : m.data, static_cast<std::size_t>(out[state].bytes()));
    }
    for (std::int64_t first = 0; first < kRows; first += some) {
      const auto of = [&](const Tensor& tensor) { return tensor.rows(first, some); };
      const auto flat = [&](const Tensor& tensor) { return of(tensor).reshaped({of(tensor).elements()}); };
      cpu_ops().swiglu(of(gate_up), of(out[0]));
      cpu_ops().swiglu_backward(of(dy), of(gate_up), of(out[1]), of(out[2]));
      cpu_ops().add_rms_norm(of(x), of(delta), w, 1e-5, of(out[3]), of(out[4]), flat(out[5]));
      cpu_ops().cross_entropy(of(x), of(targets), 0.5, flat(out[6]), of(out[7]));
      const AdamwArguments arguments{.learning_rate = 0.1, .step = 2};
      cpu_ops().adamw(arguments, flat(delta), flat(out[8]), flat(out[9]), flat(out[10]), flat(out[11]));
      cpu_ops().gather_rows(dy, flat(places), of(out[12]));
      cpu_ops().embedding(flat(places), dy, of(out[13]));
      cpu_ops().combine(dy, of(places), of(weights), of(out[14]));
      cpu_ops().combine_backward(of(x), dy, of(places), of(weights), out[15], of(out[16]));
      cpu_ops().convert(of(x), of(out[17]));
      cpu_ops().convert(of(dy), of(out[18]));
      cpu_ops().add(of(x), of(delta), of(out[19]));
    }
    return out;
  };
  const std::vector<Tensor> many = results(kRows), few = results(kFew);
  for (std::size_t i = 0; i < many.size(); ++i) {
    CHECK_MESSAGE(std::memcmp(many[i].data, few[i].data, static_cast<std::size_t>(few[i].bytes())) == 0, "result ", i);
  }
}

TEST_CASE("a packed copy lives as long as its version") {
  std::vector<float> w(6 * 4, 1), x(3 * 4, 1), y(3 * 6);
  const auto product = [&](std::uint64_t version) {
    cpu_ops().linear(Tensor(x.data(), {3, 4}), {Tensor(w.data(), {6, 4}), version}, Tensor(y.data(), {3, 6}));
    return y[0];
  };
  CHECK(product(1) == 4);
  w.assign(w.size(), 2);
  CHECK(product(1) == 4);  // the version promises that nothing changed
  CHECK(product(2) == 8);
  w.assign(w.size(), 3);
  CHECK(product(0) == 12);  // version 0 promises nothing
  w.assign(w.size(), 4);
  CHECK(product(0) == 16);
}
