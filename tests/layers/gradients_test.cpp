// Every parameter's gradient of whole tiny models against central differences in float64, along random directions.
#include <doctest/doctest.h>

#include "dropcycle/ops/backends.hpp"
#include "tiny_model.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

struct Case {
  const char* name;
  ModelConfig config;
  MicrobatchTraining training;
  std::int64_t batch = 2, sequence = 7;
  bool reset = false;
};

double loss_at(Model& model, const Case& c, const Microbatch& batch) {
  model.weights_changed();
  return total_loss(model.forward_backward(batch, c.training), c.training);
}

// |analytic - numeric| over the larger of both, for the direction `stream` of one parameter.
void check_parameter(Model& model, const Case& c, const Microbatch& batch, const ShardedTensor& part,
                     const Tensor& gradient) {
  const auto count = static_cast<std::size_t>(part.local.elements());
  auto* values = part.local.as<double>();
  const std::vector<double> original(values, values + count);
  std::vector<double> direction(count);
  RandomStream(9, Purpose::test, part.name).fill_normal(Tensor(direction.data(), part.local.shape), 0, 0, 1);
  double analytic = 0;
  for (std::size_t i = 0; i < count; ++i) analytic += direction[i] * gradient.as<double>()[i];
  const double step = 1e-5;
  const auto shifted = [&](double amount) {
    for (std::size_t i = 0; i < count; ++i) values[i] = original[i] + amount * direction[i];
    return loss_at(model, c, batch);
  };
  const double numeric =
      (8 * (shifted(step) - shifted(-step)) - (shifted(2 * step) - shifted(-2 * step))) / (12 * step);
  std::copy(original.begin(), original.end(), values);
  CAPTURE(part.name);
  CAPTURE(analytic);
  CAPTURE(numeric);
  CHECK_FALSE(!(std::abs(analytic - numeric) <= 1e-8 + 2e-7 * std::abs(numeric)));
}

void check(const Case& c) {
  CAPTURE(c.name);
  const auto ops = make_reference_ops();
  const Groups groups = Groups::single();
  Model model(c.config, groups, *ops, DType::f64);
  fill(model);
  const TinyBatch data(c.config, c.batch, c.sequence, c.reset);
  const double loss = loss_at(model, c, data.batch);
  CHECK(std::isfinite(loss));
  const ParameterStore& store = model.parameters();
  // Copies: the loss is taken again and again, each time with its gradients.
  std::vector<std::vector<double>> copies;
  for (const ShardedTensor& part : store.sharded_gradients()) {
    copies.emplace_back(part.local.as<double>(), part.local.as<double>() + part.local.elements());
  }
  const auto masters = store.sharded_masters();
  for (std::size_t i = 0; i < masters.size(); ++i) {
    check_parameter(model, c, data.batch, masters[i], Tensor(copies[i].data(), masters[i].local.shape));
  }
}

}  // namespace

TEST_CASE("dense models") {
  const auto plain = training_with(BalanceScope::all_layers);
  check({"6 query heads on 2, prime vocabulary", tiny_dense(), plain});
  check({"document resets", tiny_dense(), plain, 2, 7, true});
  check({"one token", tiny_dense(), plain, 1, 1});
  ModelConfig tied = tiny_dense();
  tied.tie_embeddings = true;
  check({"tied embeddings", tied, plain});
}

TEST_CASE("MoE models") {
  const auto all = training_with(BalanceScope::all_layers), per = training_with(BalanceScope::per_layer);
  check({"E = 3, K = 1", tiny_moe(3, 1), all});
  check({"E = 3, K = 2", tiny_moe(3, 2), per});
  check({"K = E", tiny_moe(3, 3), all});
  check({"more experts than rows: some have no token", tiny_moe(7, 2), all, 1, 2});
  check({"z-loss and jitter", tiny_moe(3, 2), training_with(BalanceScope::all_layers, 0.3, 0.1)});
  ModelConfig other = tiny_moe(4, 2);
  other.router_mode = "softmax_topk";
  check({"softmax then top-k", other, per});
}

TEST_CASE("recompute changes no bit of loss or gradients") {
  for (const ModelConfig& config : {tiny_dense(), tiny_moe(3, 2)}) {
    const auto ops = make_reference_ops();
    const Groups groups = Groups::single();
    const TinyBatch data(config, 2, 7);
    std::vector<std::vector<float>> gradients;
    std::vector<double> losses;
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      Model model(config, groups, *ops, DType::f32);
      fill(model);
      MicrobatchTraining training = training_with(BalanceScope::all_layers, 0.1, 0.1);
      training.recompute = recompute;
      losses.push_back(total_loss(model.forward_backward(data.batch, training), training));
      const Tensor flat = model.parameters().gradients(GradientGroup::dense);
      gradients.emplace_back(flat.as<float>(), flat.as<float>() + flat.elements());
    }
    CHECK(losses[1] == losses[0]);
    CHECK(losses[2] == losses[0]);
    CHECK(gradients[1] == gradients[0]);
    CHECK(gradients[2] == gradients[0]);
  }
}

TEST_CASE("a repeated microbatch allocates nothing") {
  const auto ops = make_reference_ops();
  const Groups groups = Groups::single();
  const ModelConfig config = tiny_moe(3, 2);
  const TinyBatch data(config, 2, 7);
  Model model(config, groups, *ops, DType::f32);
  fill(model);
  CHECK(allocations_of_repeats(model, data, training_with(BalanceScope::all_layers)) == 0);
}

TEST_CASE("the first layer with a NaN is named") {
  const auto ops = make_reference_ops();
  const Groups groups = Groups::single();
  const ModelConfig config = tiny_moe(3, 2);
  const TinyBatch data(config, 1, 5);
  Model model(config, groups, *ops, DType::f32);
  fill(model);
  CHECK(model.first_non_finite(data.batch) == "");
  model.parameters().weight("layers.1.attention.output", {12, 24}).as<float>()[3] = NAN;
  CHECK(model.first_non_finite(data.batch) == "layers.1.attention");
}
