// The plan of a layout against its formulas by hand, and against the model's own counts. That real runs hold what is
// planned is tested by tools/parity --memory.
#include "dropcycle/model/plan.hpp"

#include <doctest/doctest.h>

#include "dropcycle/core/error.hpp"
#include "dropcycle/model/cost.hpp"

using namespace dropcycle;

namespace {

// H 64, F 96, L 8, Nq 8, Nkv 4, D 8, V 512; B 2, S 128.
Config config_with(std::vector<std::string> settings) {
  std::vector<std::string> all = {
      "model.vocab_size=512", "model.hidden_size=64", "model.intermediate_size=96", "model.layers=8",
      "model.heads=8",        "model.kv_heads=4",     "train.micro_batch=2",        "data.sequence_length=128",
      "train.global_batch=64"};
  all.insert(all.end(), settings.begin(), settings.end());
  Config config = parse_config(all);
  resolve(config);
  return config;
}

constexpr PlanOptions kPlain{.compute = DType::bf16, .packed_weights = false, .evaluates = false};

// Parameters of all ranks that differ: tp × pp for dense ones, ep × etp for experts.
double all_parameters(const Config& config, int ranks) {
  const Plan plan = make_plan(config, ranks, kPlain);
  const Layout& l = plan.layout;
  const double norms =
      64.0 * (2 * 8 + 1) + (config.model.is_moe() ? 8.0 * 64 * static_cast<double>(config.model.experts) : 0);
  const double experts = config.model.is_moe() ? 8.0 * 3 * 64 * 96 * static_cast<double>(config.model.experts) : 0;
  double sum = 0;
  for (const StagePlan& stage : plan.stages) sum += stage.parameters;
  return (sum - norms - experts / (l.ep * l.etp)) * l.tp + norms + experts;
}

std::string refusal(const std::vector<std::string>& settings, int ranks) {
  try {
    make_plan(config_with(settings), ranks, kPlain);
  } catch (const Error& error) {
    CHECK(error.status() == Status::usage);
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("the stages and ranks together hold the model") {
  for (const int experts : {0, 4}) {
    for (const char* tied : {"true", "false"}) {
      const std::string moe = "model.experts=" + std::to_string(experts),
                        tie = std::string("model.tie_embeddings=") + tied;
      const auto total = static_cast<double>(count_parameters(config_with({moe, tie}).model).total);
      const double copy = tie.ends_with("true") ? 512 * 64 : 0;  // the last stage's
      CHECK(all_parameters(config_with({moe, tie}), 1) == total);
      CHECK(all_parameters(config_with({moe, tie, "parallel.tensor=2"}), 4) == total);
      CHECK(all_parameters(config_with({moe, tie, "parallel.tensor=2", "parallel.pipeline=4"}), 8) == total + copy);
      if (experts == 0) continue;
      CHECK(all_parameters(config_with({moe, tie, "parallel.expert=2", "parallel.expert_tensor=2"}), 8) == total);
    }
  }
}

TEST_CASE(
    "state: weights in bf16, the rest of their masters, gradients and moments in fp32, and what sharding leaves") {
  const Plan whole = make_plan(config_with({"parallel.shard_optimizer=false"}), 4, kPlain);
  const Plan sharded = make_plan(config_with({"parallel.shard_optimizer=true"}), 4, kPlain);
  const StagePlan &w = whole.stages[0], &s = sharded.stages[0];
  const double norms = 64 * 17, others = w.parameters - norms;
  CHECK(w.weights == 2 * others + 4 * norms);
  CHECK(w.gradients == 4 * w.parameters);
  CHECK(w.masters == 2 * others);
  CHECK(w.moments == 8 * w.parameters);
  CHECK(s.weights == w.weights);
  CHECK(s.gradients == w.gradients);
  CHECK(4 * s.masters == w.masters);
  CHECK(4 * s.moments == w.moments);
  PlanOptions f32 = kPlain;
  f32.compute = DType::f32;
  CHECK(make_plan(config_with({}), 1, f32).stages[0].masters == 0);
}

TEST_CASE("saved activations of a dense model, by the formula") {
  const double c = 2, a = 4, g = 256, h = 64, q = 64, kv = 32, heads = 8, f = 96;
  const double attention = g * h * (a + c) + g * a + g * (q + 2 * kv) * c + g * q * c + g * heads * a;
  const double mlp = g * h * (a + c) + g * a + g * 2 * f * c + g * f * c;
  const double chunk = 2 * g * h * a + (g * h * (a + c) + g * a) + g * h * a + (g * a + g * h * a);
  const double first = -g * h * a;  // nothing is added before the first norm
  const Plan plan = make_plan(config_with({"train.recompute=none"}), 1, kPlain);
  CHECK(plan.stages[0].saved == 8 * (attention + mlp) + chunk + first);
  CHECK(plan.stages[0].alive == 1);
  const double again = 2 * g * h * c + g * f * c;  // norms and SwiGLU
  CHECK(make_plan(config_with({"train.recompute=selective"}), 1, kPlain).stages[0].saved ==
        8 * (attention + mlp - again) + chunk + first);
  // All that lies inside layers is split by tp and cp alike, but for the rows of the logits' losses.
  const Plan four =
      make_plan(config_with({"train.recompute=none", "parallel.context=2", "parallel.tensor=2"}), 4, kPlain);
  CHECK(4 * four.stages[0].saved == doctest::Approx(plan.stages[0].saved + g * a).epsilon(1e-12));
}

TEST_CASE("a pipeline's first stage keeps as many microbatches as it has stages") {
  const Plan plan = make_plan(config_with({"parallel.pipeline=4"}), 4, kPlain);
  REQUIRE(plan.stages.size() == 4);
  for (int stage = 0; stage < 4; ++stage) CHECK(plan.stages[static_cast<std::size_t>(stage)].alive == 4 - stage);
  CHECK(make_plan(config_with({"parallel.pipeline=4", "parallel.schedule=gpipe"}), 4, kPlain).stages[3].alive == 32);
}

TEST_CASE("routing between balanced and worst") {
  const Config config = config_with({"model.experts=8", "parallel.expert=4"});
  const Plan balanced = make_plan(config, 4, kPlain);
  CHECK(balanced.worst_expert_load == 4);  // both experts of a token may be on one rank
  CHECK(make_plan(config_with({"model.experts=8", "parallel.expert=8"}), 8, kPlain).worst_expert_load == 4);
  PlanOptions worst = kPlain;
  worst.expert_load = {100, 100};  // counts as the worst
  const double c = 2, a = 4, rows = 256 * 2, width = 96, layers = 8;
  const double experts = layers * rows * 3 * ((64 + 2 * width) * c + 8);  // three more shares of rows
  CHECK(make_plan(config, 4, worst).stages[0].saved == doctest::Approx(balanced.stages[0].saved + experts));
  CHECK(a > c);
}

TEST_CASE("layouts that don't fit are refused with the nearest that do") {
  const auto says = [](const std::vector<std::string>& settings, int ranks, const std::vector<std::string>& words) {
    const std::string text = refusal(settings, ranks);
    CAPTURE(text);
    for (const std::string& word : words) CHECK(text.find(word) != std::string::npos);
  };
  says({"parallel.tensor=3"}, 3, {"parallel.tensor", "model.heads (8)", "choose 2 or 4"});
  says({"model.experts=4", "parallel.expert_tensor=5"}, 5, {"parallel.expert_tensor", "(96)", "choose 4 or 6"});
  says({"parallel.pipeline=9"}, 9, {"8", "9", "parallel.pipeline"});
  says({"train.global_batch=50"}, 4, {"train.global_batch = 50", "4 data-parallel", "choose 48 or 56"});
  says({"parallel.tensor=4"}, 6, {"6 ranks", "4", "start 4 or 8"});
}
