#include <doctest/doctest.h>

#include <cmath>

#include "../layers/tiny_model.hpp"
#include "dropcycle/ops/backends.hpp"
#include "dropcycle/optim/adamw.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

TEST_CASE("learning rates at the corners of the schedules") {
  OptimizerConfig c{.learning_rate = 1, .min_learning_rate = 0.1, .warmup_steps = 10, .constant_steps = 20};
  CHECK(learning_rate_at(c, 130, 1) == doctest::Approx(0.1));
  CHECK(learning_rate_at(c, 130, 10) == doctest::Approx(1));
  CHECK(learning_rate_at(c, 130, 60) == doctest::Approx(0.55));
  CHECK(learning_rate_at(c, 130, 110) == doctest::Approx(0.1));
  CHECK(learning_rate_at(c, 130, 130) == doctest::Approx(0.1));
  c.schedule = "linear";
  CHECK(learning_rate_at(c, 130, 35) == doctest::Approx(0.775));
  c.schedule = "constant";
  CHECK(learning_rate_at(c, 130, 130) == doctest::Approx(1));
}

TEST_CASE("decay exclusions, clipping and the update's formula") {
  const auto ops = make_reference_ops();
  const Groups groups = Groups::single();
  Model model(tiny_moe(3, 2), groups, *ops, DType::f64);
  fill(model);
  OptimizerConfig config{.weight_decay = 0.5, .clip = 0.25, .decay_norms = false, .decay_router = false};
  AdamW optimizer(model, groups, config);
  const auto masters = model.parameters().sharded_masters();
  std::vector<std::vector<double>> before;
  for (const auto& part : masters)
    before.emplace_back(part.local.as<double>(), part.local.as<double>() + part.local.elements());
  const Tensor dense = model.parameters().gradients(GradientGroup::dense);
  dense.as<double>()[0] = 3;  // the embedding's first element
  const double norm = optimizer.gradient_norm();
  CHECK(norm == doctest::Approx(3));
  CHECK(optimizer.clip_factor(norm) == doctest::Approx(0.25 / (3 + 1e-6)).epsilon(1e-12));
  const std::uint64_t version = model.parameters().version();
  optimizer.update(1, 0.01, optimizer.clip_factor(norm));
  CHECK(model.parameters().version() > version);
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const bool decays =
        masters[i].name.find("norm") == std::string::npos && masters[i].name.find("router") == std::string::npos;
    for (std::size_t j = 0; j < before[i].size(); ++j) {
      const double step = i == 0 && j == 0 ? 1 / (1 + 1e-8 / 0.25) : 0;  // the first step is g / (|g| + ε)
      const double expected = before[i][j] - 0.01 * (step + (decays ? 0.5 * before[i][j] : 0));
      CAPTURE(masters[i].name);
      REQUIRE_FALSE(!(std::abs(masters[i].local.as<double>()[j] - expected) <= 1e-12));
    }
  }
}
