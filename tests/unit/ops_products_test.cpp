// Products: odd sizes, experts without rows.
#include <string>

#include "ops_support.hpp"

using namespace dropcycle;
using dropcycle::test::check_against_float64;
using dropcycle::test::Run;

TEST_CASE("linear and its adjoints on odd and even sizes") {
  struct Size {
    std::int64_t rows, in, out;
  };
  for (const auto& s : {Size{1, 1, 1},
                        {5, 7, 1},
                        {3, 1, 13},
                        {33, 64, 96},
                        {130, 256, 97},
                        {64, 2050, 48},
                        {300, 31, 290},
                        // own products of bf16: a vector of columns left over, k in blocks, results past the caches
                        {67, 48, 336},
                        {5, 4160, 64},
                        {131, 64, 4160},
                        {2001, 32, 1056}}) {
    check_against_float64("linear " + std::to_string(s.in), [&](Run& r) {
      const Weight w{r.normal(r.compute, {s.out, s.in}, 0.1)};
      const Tensor x = r.normal(r.compute, {s.rows, s.in}), dy = r.normal(r.compute, {s.rows, s.out});
      const Tensor y = r.empty(r.compute, {s.rows, s.out}), wide = r.empty(r.acc, {s.rows, s.out});
      const Tensor dx = r.empty(r.compute, {s.rows, s.in}), dw = r.normal(r.acc, {s.out, s.in});
      r.ops.linear(x, w, y);
      r.ops.linear(x, w, wide);
      r.ops.linear_dx(dy, w, dx);
      r.ops.linear_dw(dy, x, dw);
      r.output("y", y);
      r.output("y in acc", wide);
      r.output("dx", dx);
      r.output("dw", dw);
    });
  }
}

TEST_CASE("products of experts with few, many and no rows") {
  for (const auto& counts : {std::vector<std::int64_t>{0, 5, 0}, {1, 200, 37}, {0, 0, 0}, {32, 31, 33}, {333, 1, 64}}) {
    for (const auto& [in, out] : {std::pair<std::int64_t, std::int64_t>{40, 72}, {48, 160}}) {
      check_against_float64("grouped", [&, in = in, out = out](Run& r) {
        const std::int64_t experts = 3;
        std::vector<std::int64_t> offsets{0};
        for (const auto count : counts) offsets.push_back(offsets.back() + count);
        const std::int64_t rows = offsets.back();
        const Weight w{r.normal(r.compute, {experts, out, in}, 0.2)};
        const Tensor x = r.normal(r.compute, {rows, in}), dy = r.normal(r.compute, {rows, out});
        const Tensor y = r.empty(r.compute, {rows, out}), dx = r.empty(r.compute, {rows, in});
        const Tensor dw = r.normal(r.acc, {experts, out, in});
        r.ops.grouped_linear(x, offsets, w, y);
        r.ops.grouped_linear_dx(dy, offsets, w, dx);
        r.ops.grouped_linear_dw(dy, x, offsets, dw);
        r.output("y", y);
        r.output("dx", dx);
        r.output("dw", dw);
      });
    }
  }
}
