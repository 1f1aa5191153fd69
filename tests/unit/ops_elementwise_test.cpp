// Everything of a backend but products and attention.
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "ops_support.hpp"

using namespace dropcycle;
using dropcycle::test::check_against_float64;
using dropcycle::test::Run;
using dropcycle::test::tested_ops;

namespace {

struct Size {
  std::int64_t rows, width;
};
constexpr std::array<Size, 4> kSizes{{{2, 5}, {7, 37}, {65, 256}, {300, 96}}};

// Of 23 rows, one of them ignored.
Tensor some_targets(Run& r, std::int64_t vocabulary) {
  auto targets = r.index_values({23}, -1, vocabulary);
  targets[3] = -1;
  return r.integers(targets, {23});
}

}  // namespace

TEST_CASE("add, convert and fill_zero") {
  for (const auto& [rows, width] : kSizes) {
    check_against_float64("add", [&](Run& r) {
      const Tensor a = r.normal(r.compute, {rows, width}), b = r.normal(r.compute, {rows, width});
      const Tensor y = r.empty(r.compute, {rows, width}), wide = r.empty(r.acc, {rows, width});
      r.ops.convert(a, wide);
      r.output("widened", wide);
      r.ops.add(a, b, y);
      r.ops.add(a, b, a);
      r.output("y", y);
      r.output("in place", a);
      r.ops.convert(r.normal(r.acc, {rows, width}), b);
      r.output("rounded", b);
      const Tensor zero = r.normal(r.compute, {rows, width});
      r.ops.fill_zero(zero);
      r.output("zero", zero);
    });
  }
}

TEST_CASE("conversion to bf16 rounds to nearest even and keeps NaN and infinity") {
  std::vector<double> values{1.00390625, 1.01171875, NAN, -NAN, INFINITY, -INFINITY, 3.4e38, -0.0, 1e-40, 0.1};
  values.resize(40, 1.2345678);
  Run r(tested_ops(), DType::f32, DType::f32);
  const Tensor out = r.empty(DType::bf16, {40});
  r.ops.convert(r.given(DType::f32, values, {40}), out);
  const dropcycle::HostCopy found(r.ops.device(), out);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const BF16 got = found.view().as<BF16>()[i];
    if (std::isnan(values[i])) {
      CHECK(std::isnan(static_cast<float>(got)));
    } else {
      CHECK(got.bits == BF16(static_cast<float>(values[i])).bits);
    }
  }
}

TEST_CASE("jitter is its own formula on the stream's draws") {
  check_against_float64("jitter", [](Run& r) {
    const Tensor x = r.normal(r.compute, {33, 17}), y = r.empty(r.compute, {33, 17});
    r.ops.jitter(x, RandomStream(3, Purpose::jitter, "layer", 5), 1234, 0.01, y);
    r.output("y", y);
  });
}

TEST_CASE("embedding and its adjoint") {
  for (const auto& [rows, width] : kSizes) {
    check_against_float64("embedding", [&](Run& r) {
      const Tensor tokens = r.indices({rows}, -3, 29), w = r.normal(r.compute, {29, width});
      const Tensor y = r.empty(r.acc, {rows, width}), dw = r.normal(r.acc, {29, width});
      r.ops.embedding(tokens, w, y);
      r.ops.embedding_backward(y, tokens, dw);
      r.output("y", y);
      r.output("dw", dw);
    });
  }
}

TEST_CASE("add_rms_norm and its adjoint") {
  for (const auto& [rows, width] : kSizes) {
    for (const bool with_delta : {false, true}) {
      check_against_float64("rms_norm", [&](Run& r) {
        const Shape shape{rows, width};
        const Tensor x = r.normal(r.acc, shape), delta = r.normal(r.acc, shape, 0.3);
        const Tensor w = r.normal(r.acc, {width}, 0.2, 1);
        const Tensor sum = r.empty(r.acc, shape), y = r.empty(r.compute, shape), inv = r.empty(r.acc, {rows});
        r.ops.add_rms_norm(x, with_delta ? delta : Tensor{}, w, 1e-5, with_delta ? sum : Tensor{}, y, inv);
        if (with_delta) r.output("sum", sum);
        r.output("y", y);
        r.output("inv_rms", inv);
        const Tensor inverse = r.normal(r.acc, {rows}, 0.1, 1), dy = r.normal(r.acc, shape);
        const Tensor residual = r.normal(r.acc, shape), dx = r.empty(r.acc, shape), dw = r.normal(r.acc, {width});
        r.ops.rms_norm_backward(dy, x, w, inverse, with_delta ? residual : Tensor{}, dx, dw);
        r.output("dx", dx);
        r.output("dw", dw);
        r.ops.rms_norm_backward(dy, x, w, inverse, residual, residual, dw);
        r.output("dx in place", residual);
      });
    }
  }
}

TEST_CASE("rope rotates the first heads forward and back") {
  for (const std::int64_t d : {2, 6, 64}) {
    for (const int direction : {1, -1}) {
      check_against_float64("rope", [&](Run& r) {
        const std::int64_t rows = 19, heads = 3;
        const Tensor x = r.normal(r.compute, {rows, (heads + 1) * d}), positions = r.indices({rows}, 0, 700);
        std::vector<double> frequencies;
        for (std::int64_t i = 0; i < d / 2; ++i) {
          frequencies.push_back(std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(d)));
        }
        r.ops.rope(x, positions, Tensor(frequencies.data(), {d / 2}), d, heads, direction);
        r.output("x", x);
      });
    }
  }
}

TEST_CASE("swiglu and its adjoint") {
  for (const auto& [rows, width] : kSizes) {
    check_against_float64("swiglu", [&](Run& r) {
      const Tensor x = r.normal(r.compute, {rows, 2 * width}, 3), dy = r.normal(r.compute, {rows, width});
      const Tensor y = r.empty(r.compute, {rows, width}), again = r.empty(r.compute, {rows, width});
      const Tensor dx = r.empty(r.compute, {rows, 2 * width}), dx2 = r.empty(r.compute, {rows, 2 * width});
      r.ops.swiglu(x, y);
      r.ops.swiglu_backward(dy, x, dx, again);
      r.ops.swiglu_backward(dy, x, dx2, {});
      r.output("y", y);
      r.output("dx", dx);
      r.output("dx without y", dx2);
      r.output("y again", again);
      const Tensor x_dx = r.empty(r.compute, x.shape), dy_y = r.empty(r.compute, dy.shape);
      r.ops.device().copy(x_dx.data, x.data, x.bytes());
      r.ops.device().copy(dy_y.data, dy.data, dy.bytes());
      r.ops.swiglu_backward(dy_y, x_dx, x_dx, dy_y);
      r.output("dx in gate and up's place", x_dx);
      r.output("y in dy's place", dy_y);
    });
  }
}

TEST_CASE("swiglu at the ends of the number range") {
  Run r(tested_ops(), DType::f32, DType::f32);
  const Tensor y = r.empty(DType::f32, {1, 6});
  r.ops.swiglu(r.given(DType::f32, {-200, 200, -1e4, 88, -88, 0, 1, 1, 1, 1, 1, 1}, {1, 12}), y);
  const std::vector<double> want{0, 200, 0, 88, -5.3e-37, 0}, found = r.read(y);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const bool good = std::abs(found[i] - want[i]) <= 1e-6 * std::abs(want[i]) + 1e-34;
    CHECK_MESSAGE(good, found[i], ", not ", want[i]);
  }
}

TEST_CASE("router: logits, choice, weights and adjoints") {
  for (const auto& [rows, experts, top_k] :
       {std::array<std::int64_t, 3>{1, 1, 1}, {9, 3, 1}, {70, 8, 2}, {33, 64, 5}, {40, 5, 5}}) {
    for (const RouterMode mode : {RouterMode::topk_softmax, RouterMode::softmax_topk}) {
      check_against_float64("router", [&, n = rows, e = experts, k = top_k](Run& r) {
        const std::int64_t h = 77;
        const Tensor x = r.normal(r.compute, {n, h}), w = r.normal(r.acc, {e, h}, 0.2);
        const Tensor logits = r.empty(r.acc, {n, e});
        r.ops.router_logits(x, w, logits);
        r.output("logits", logits);
        const Tensor given = r.normal(r.acc, {n, e});
        const Tensor chosen = r.empty(DType::i32, {n, k}), weights = r.empty(r.acc, {n, k});
        const Tensor p = r.empty(r.acc, {n, e}), lse = r.empty(r.acc, {n});
        r.ops.route(given, mode, chosen, weights, p, lse);
        r.output("experts", chosen);
        r.output("weights", weights);
        r.output("probabilities", p);
        r.output("lse", lse);
        const Tensor dweights = r.normal(r.acc, {n, k}), a = r.normal(r.acc, {e}), dlogits = r.empty(r.acc, {n, e});
        r.ops.route_backward(mode, chosen, weights, p, lse, dweights, a, 0.01, dlogits);
        r.output("dlogits", dlogits);
        const Tensor without = r.empty(r.acc, {n, e});
        r.ops.route_backward(mode, chosen, weights, p, lse, dweights, {}, 0, without);
        r.output("dlogits of the weights alone", without);
        const Tensor dx = r.normal(r.acc, {n, h}), dw = r.normal(r.acc, {e, h}), sums = r.normal(r.acc, {e});
        r.ops.router_logits_backward(given, x, w, dx, dw);
        r.ops.sum_rows(given, sums);
        r.output("dx", dx);
        r.output("dw", dw);
        r.output("sum_rows", sums);
      });
    }
  }
}

TEST_CASE("ties go to the lower expert, and NaN still gives valid indices") {
  Run r(tested_ops(), DType::f32, DType::f32);
  const Tensor experts = r.empty(DType::i32, {2, 3});
  r.ops.route(r.given(DType::f32, {1, 2, 2, 0, 2, NAN, NAN, NAN, NAN, NAN}, {2, 5}), RouterMode::topk_softmax, experts,
              r.empty(DType::f32, {2, 3}), r.empty(DType::f32, {2, 5}), r.empty(DType::f32, {2}));
  const auto chosen = r.read(experts);
  CHECK(std::vector<double>(chosen.begin(), chosen.begin() + 3) == std::vector<double>{1, 2, 4});
  for (std::size_t k = 3; k < 6; ++k) CHECK((chosen[k] >= 0 && chosen[k] < 5));
}

TEST_CASE("rows sorted by expert keep the order of tokens") {
  Run r(tested_ops(), DType::f32, DType::f32);
  const Tensor counts = r.given(DType::i32, {9, 9, 9, 9}, {4}), tokens = r.empty(DType::i32, {8});
  const Tensor slots = r.empty(DType::i32, {4, 2});
  r.ops.sort_rows(r.integers({2, 0, 0, 3, 2, 3, 0, 2}, {4, 2}), counts, tokens, slots);
  CHECK(r.read(counts) == std::vector<double>{3, 0, 3, 2});
  CHECK(r.read(tokens) == std::vector<double>{0, 1, 3, 0, 2, 3, 1, 2});
  CHECK(r.read(slots) == std::vector<double>{3, 0, 1, 6, 4, 7, 2, 5});
  for (const std::int64_t rows : {0, 1, 700, 3000}) {
    for (const std::int64_t count : {1, 8, 100}) {
      check_against_float64("sort_rows", [&](Run& run) {
        const Tensor experts = run.indices({rows, 3}, 0, count), sums = run.empty(DType::i32, {count});
        const Tensor of_row = run.empty(DType::i32, {3 * rows}), places = run.empty(DType::i32, {rows, 3});
        run.ops.sort_rows(experts, sums, of_row, places);
        run.output("counts", sums);
        run.output("token_of_row", of_row);
        run.output("slots", places);
      });
    }
  }
}

TEST_CASE("gather, combine and their adjoint") {
  for (const std::int64_t top_k : {1, 2, 3}) {
    check_against_float64("combine", [&](Run& r) {
      const std::int64_t rows = 21, h = 301;
      std::vector<std::int32_t> slots;
      for (std::int64_t i = 0; i < rows * top_k; ++i)
        slots.push_back(static_cast<std::int32_t>(i * 23 % (rows * top_k)));
      const Tensor where = r.integers(slots, {rows, top_k}), z = r.normal(r.compute, {rows * top_k, h});
      const Tensor weights = r.normal(r.acc, {rows, top_k}), y = r.empty(r.acc, {rows, h});
      const Tensor ones = r.empty(r.compute, {rows, h}), dy = r.normal(r.acc, {rows, h});
      const Tensor dz = r.empty(r.compute, {rows * top_k, h}), dweights = r.empty(r.acc, {rows, top_k});
      r.ops.combine(z, where, weights, y);
      r.ops.combine(z, where, {}, ones);
      r.ops.combine_backward(dy, z, where, weights, dz, dweights);
      const Tensor index = r.indices({50}, 0, rows), out = r.empty(r.compute, {50, h});
      r.ops.gather_rows(ones, index, out);
      r.output("y", y);
      r.output("y without weights", ones);
      r.output("dz", dz);
      r.output("dweights", dweights);
      r.output("gathered", out);
    });
  }
}

TEST_CASE("cross-entropy with ignored rows") {
  for (const std::int64_t vocabulary : {2, 97, 4099}) {
    check_against_float64("cross_entropy", [&](Run& r) {
      const Tensor logits = r.normal(r.acc, {23, vocabulary}, 4), targets = some_targets(r, vocabulary);
      const Tensor losses = r.empty(r.acc, {23}), alone = r.empty(r.acc, {23});
      const Tensor dlogits = r.empty(r.compute, {23, vocabulary});
      r.ops.cross_entropy(logits, targets, 0.37, losses, dlogits);
      r.ops.cross_entropy(logits, targets, 0.37, alone, {});
      r.output("losses", losses);
      r.output("losses alone", alone);
      r.output("dlogits", dlogits);
    });
  }
}

TEST_CASE("cross-entropy over columns on three ranks is that of the whole vocabulary") {
  for (const std::int64_t vocabulary : {3, 97, 4099}) {
    check_against_float64("cross_entropy of parts", [&](Run& r) {
      const Tensor logits = r.normal(r.acc, {23, vocabulary}, 4), targets = some_targets(r, vocabulary);
      const Tensor losses = r.empty(r.acc, {23}), parts = r.empty(r.acc, {3, 23, 3});
      const std::int64_t ends[] = {0, vocabulary / 3, vocabulary - 1, vocabulary};
      std::vector<Tensor> columns;
      for (int rank = 0; rank < 3; ++rank) {
        columns.push_back(r.empty(r.acc, {23, ends[rank + 1] - ends[rank]}));
        r.ops.copy_columns({logits, ends[rank]}, {columns.back(), 0}, columns.back().shape[1]);
        r.ops.cross_entropy_part(columns.back(), targets, ends[rank], parts[rank]);
      }
      const Tensor whole = r.empty(r.acc, {23}), dwhole = r.empty(r.compute, {23, vocabulary});
      r.ops.cross_entropy(logits, targets, 0.37, whole, dwhole);
      const Tensor together = r.empty(r.compute, {23, vocabulary});
      for (int rank = 0; rank < 3; ++rank) {
        const Tensor dlogits = r.empty(r.compute, columns[static_cast<std::size_t>(rank)].shape);
        r.ops.cross_entropy_of_parts(parts, columns[static_cast<std::size_t>(rank)], targets, ends[rank], 0.37, losses,
                                     dlogits);
        r.ops.copy_columns({dlogits, 0}, {together, ends[rank]}, dlogits.shape[1]);
      }
      const auto expected = r.read(dwhole), found = r.read(together);
      for (std::size_t i = 0; r.compute == DType::f64 && i < expected.size(); ++i) {
        REQUIRE_FALSE(!(std::abs(found[i] - expected[i]) <= 1e-13));
      }
      r.output("parts", parts);
      r.output("losses", losses);
      r.output("dlogits", together);
    });
  }
}

TEST_CASE("masters in halves keep all their bits") {
  constexpr std::int64_t kCount = 70001;
  const RandomStream stream(5, Purpose::test, "masters");
  std::vector<std::uint32_t> words = {0x00000000, 0x80000000, 0x3f808000, 0x3f818000, 0xbf808000,
                                      0x3f807fff, 0x3f80ffff, 0x00000001, 0x807fffff, 0x7f7fffff,
                                      0xff7fffff, 0x7f800000, 0xff800000};
  while (std::ssize(words) < kCount) words.push_back(stream.bits(words.size()));
  for (const std::uint32_t nan : {0x7f800001U, 0x7fffffffU, 0xffffffffU, 0x7fc00000U}) words.push_back(nan);
  std::vector<float> values(words.size()), again(words.size());
  std::vector<BF16> upper(words.size());
  std::memcpy(values.data(), words.data(), words.size() * sizeof(float));
  Run r(tested_ops(), DType::bf16, DType::f32);
  Device& device = r.ops.device();
  const Shape shape{std::ssize(words)};
  const Tensor masters = r.empty(DType::f32, shape), weight = r.empty(DType::bf16, shape),
               alone = r.empty(DType::bf16, shape), low = r.empty(DType::i16, shape);
  device.upload(masters.data, values.data(), masters.bytes());
  r.ops.split_masters(masters, weight, low);
  r.ops.split_masters(masters, alone, {});
  r.ops.fill_zero(masters);
  r.ops.join_masters(weight, low, masters);
  device.download(again.data(), masters.data, masters.bytes());
  device.download(upper.data(), weight.data, weight.bytes());
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (std::isnan(values[i])) {
      wrong += !std::isnan(again[i]) || !std::isnan(static_cast<float>(upper[i]));
      continue;
    }
    const std::uint32_t nearest = ((words[i] + 0x8000U) >> 16) & 0xffffU;
    wrong += std::bit_cast<std::uint32_t>(again[i]) != words[i] || upper[i].bits != nearest;
  }
  CHECK(wrong == 0);
  std::vector<BF16> same(words.size());
  device.download(same.data(), alone.data, alone.bytes());
  CHECK(std::memcmp(same.data(), upper.data(), words.size() * sizeof(BF16)) == 0);
}

TEST_CASE("AdamW and the squared norm") {
  for (const std::int64_t n : {1, 1003, 40000}) {
    check_against_float64("adamw", [&](Run& r) {
      const Tensor gradient = r.normal(r.acc, {n}), master = r.normal(r.acc, {n}, 0.1), m = r.normal(r.acc, {n}, 0.1);
      const Tensor v = r.given(r.acc, std::vector<double>(static_cast<std::size_t>(n), 0.01), {n});
      const bool halves = r.compute == DType::bf16;
      const Tensor weight = halves ? r.empty(r.compute, {n}) : Tensor();
      const Tensor kept = halves ? r.empty(DType::i16, {n}) : master;
      if (halves) r.ops.split_masters(master, weight, kept);
      const AdamwArguments arguments{.learning_rate = 1e-2, .weight_decay = 0.1, .gradient_scale = 0.5, .step = 3};
      for (int i = 0; i < 2; ++i) r.ops.adamw(arguments, gradient, kept, m, v, weight);
      if (halves) r.ops.join_masters(weight, kept, master);
      r.output("master", master);
      r.output("m", m);
      r.output("v", v);
      r.output("weight", halves ? weight : master);
    });
    Run r(tested_ops(), DType::f32, DType::f32);
    const Tensor x = r.normal(DType::f32, {n});
    double want = 0;
    for (const double value : r.read(x)) want += value * value;
    const bool good = std::abs(r.ops.squared_norm(x) - want) <= 1e-12 * want;
    CHECK(good);
  }
}
