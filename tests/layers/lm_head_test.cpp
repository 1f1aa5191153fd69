// The head's blocks of rows.
#include "dropcycle/layers/lm_head.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "dropcycle/layers/context.hpp"
#include "dropcycle/ops/backends.hpp"

using namespace dropcycle;

TEST_CASE("blocks of rows give the loss and the gradients of all rows at once") {
  constexpr std::int64_t kRows = 9, kHidden = 5, kVocabulary = 23;
  const auto ops = make_reference_ops();
  const Groups groups = Groups::single();
  Arena saved, routed, scratch;
  Context context{*ops, groups, saved, routed, scratch, DType::f64, 0};
  OwnedTensor w(DType::f64, {kVocabulary, kHidden}), n(DType::f64, {kRows, kHidden}), targets(DType::i32, {kRows});
  RandomStream(1, Purpose::test, "w").fill_normal(w, 0, 0, 1);
  RandomStream(1, Purpose::test, "n").fill_normal(n, 0, 0, 1);
  for (std::int64_t t = 0; t < kRows; ++t) targets.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(t * 7 % 23);
  targets.view().as<std::int32_t>()[4] = -1;
  struct Results {
    OwnedTensor losses{DType::f64, {kRows}}, evaluated{DType::f64, {kRows}};
    OwnedTensor dn{DType::f64, {kRows, kHidden}}, dw{DType::f64, {kVocabulary, kHidden}};
  };
  const auto run = [&](std::int64_t block_rows) {
    const LmHead head(kVocabulary, groups, block_rows);
    Results r;
    head.forward(context, w, n, targets, r.evaluated);
    head.forward_backward(context, w, n, targets, 0.3, r.losses, r.dn, r.dw);
    return r;
  };
  const auto difference = [](const Tensor& a, const Tensor& b) {
    double most = 0;
    for (std::int64_t i = 0; i < a.elements(); ++i)
      most = std::max(most, std::abs(a.as<double>()[i] - b.as<double>()[i]));
    return most;
  };
  const Results whole = run(100);
  CHECK(whole.losses.view().as<double>()[4] == 0);
  CHECK(whole.losses.view().as<double>()[8] > 0);
  for (const std::int64_t block_rows : {1, 4, 9}) {
    const Results cut = run(block_rows);
    CHECK(difference(cut.losses, whole.losses) == 0);
    CHECK(difference(cut.evaluated, whole.losses) == 0);
    CHECK(difference(cut.dn, whole.dn) == 0);
    CHECK(difference(cut.dw, whole.dw) <= 1e-14);
  }
}
