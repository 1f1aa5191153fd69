// Tensor, sequence and expert-tensor parallelism against one rank (model_parity.hpp), alone and on top of the other
// axes.
#include "dropcycle/model/decoder.hpp"
#include "model_parity.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

// Sizes that up to 4 ranks share, but an odd vocabulary, which they can't share evenly.
ModelConfig sharable(std::int64_t experts, std::int64_t kv_heads = 2) {
  ModelConfig config = tiny_moe(experts, 2);
  config.heads = 8;
  config.kv_heads = kv_heads;
  config.intermediate_size = 12;
  return config;
}

ModelConfig tied(ModelConfig config) {
  config.tie_embeddings = true;
  return config;
}

// All of `layouts` that these ranks can form.
void check_layouts(ParityCase c, const std::vector<Layout>& layouts) {
  c.sequence = 8;
  c.microbatches = 4;
  for (const Layout& layout : layouts) {
    const int smallest = layout.tp * layout.cp * layout.pp, experts = layout.etp * layout.ep;
    if (world_size() % smallest != 0 || world_size() / layout.pp % experts != 0) continue;
    check_parity(c, layout);
  }
}

const std::vector<Layout> kDense = {{.tp = 2}, {.tp = 4}, {.tp = 2, .cp = 2}, {.tp = 2, .pp = 2}};
const std::vector<Layout> kExperts = {{.tp = 2, .ep = 2},
                                      {.tp = 2, .ep = 4},
                                      {.tp = 4, .ep = 2},
                                      {.tp = 4},
                                      {.tp = 2, .etp = 2},
                                      {.tp = 4, .etp = 2, .ep = 2},
                                      {.tp = 2, .etp = 2, .ep = 2},
                                      {.etp = 2},
                                      {.etp = 4},
                                      {.etp = 2, .ep = 2},
                                      {.tp = 2, .cp = 2, .ep = 2},
                                      {.tp = 2, .cp = 2, .etp = 2, .ep = 2},
                                      {.tp = 2, .pp = 2, .etp = 2},
                                      {.tp = 2, .pp = 2, .ep = 2}};

}  // namespace

TEST_CASE("dense models: split and shared key/value heads, tied embeddings, document resets") {
  const auto all = training_with(BalanceScope::all_layers);
  check_layouts({"dense", sharable(0), all}, kDense);
  check_layouts({"one key/value head", sharable(0, 1), all}, kDense);
  check_layouts({"as many key/value heads as query heads", sharable(0, 8), all}, kDense);
  check_layouts({"tied embeddings", tied(sharable(0)), all}, kDense);
}

TEST_CASE("MoE models: both scopes of the balancing loss, z-loss and jitter") {
  check_layouts({"4 experts", sharable(4), training_with(BalanceScope::all_layers)}, kExperts);
  check_layouts({"z-loss and jitter", tied(sharable(4, 1)), training_with(BalanceScope::per_layer, 0.3, 0.1)},
                kExperts);
}

TEST_CASE("recompute runs the collectives again") {
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    auto training = training_with(BalanceScope::per_layer, 0.1, 0.1);
    training.recompute = recompute;
    check_layouts({"recompute", sharable(4), training}, kExperts);
    check_layouts({"recompute, dense", sharable(0), training}, kDense);
  }
}

TEST_CASE("half of the rows travel while the other half's experts compute") {
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    auto training = training_with(BalanceScope::all_layers, 0.1, 0.1);
    training.recompute = recompute;
    training.overlap_dispatch = true;
    check_layouts({"overlap", sharable(4), training}, kExperts);
  }
}

TEST_CASE("ranks whose experts get no token") {
  ModelConfig config = sharable(4);
  config.experts_per_token = 1;
  check_layouts({"one expert takes all", config, training_with(BalanceScope::all_layers), true}, kExperts);
}

TEST_CASE("a repeated microbatch allocates nothing") {
  const auto ops = make_reference_ops();
  for (const Layout& layout : {Layout{.tp = 2, .etp = 2}, Layout{.tp = 2, .ep = 2}}) {
    const Groups groups = Groups::over_mpi(Topology(layout, world_size()));
    const ModelConfig config = sharable(4);
    const TinyBatch data(config, 2, 8);
    Model model(config, groups, *ops, DType::f32);
    fill(model);
    auto training = training_with(BalanceScope::all_layers);
    training.overlap_dispatch = layout.ep > 1;
    CHECK(allocations_of_repeats(model, data, training) == 0);
  }
}

TEST_CASE("the place of a NaN is named by the rank that holds it, and by no other of its microbatch") {
  const auto ops = make_reference_ops();
  const Groups groups = Groups::over_mpi(Topology({.tp = 2}, world_size()));
  const ModelConfig config = sharable(0);
  const TinyBatch data(config, 1, 8);
  Model model(config, groups, *ops, DType::f32);
  fill(model);
  CHECK(model.first_non_finite(data.batch) == "");
  // The last token's row of the embedding: it lies on one rank, and the last half of the rows is on tp rank 1.
  for (const ShardedTensor& part : model.parameters().sharded_masters()) {
    if (part.name != "embedding") continue;
    const std::int64_t row = data.tokens.back() - part.offset[0];
    if (row >= 0 && row < part.local.shape[0]) part.local[row].as<float>()[0] = NAN;
  }
  model.weights_changed();
  const bool first_half =
      std::find(data.tokens.begin(), data.tokens.begin() + 4, data.tokens.back()) != data.tokens.begin() + 4;
  const bool holds = first_half || groups[GroupKind::tp].rank() == 1;
  CHECK(model.first_non_finite(data.batch) == (holds ? "embedding" : ""));
}

TEST_CASE("generation pads to rows that all ranks share, and says what one rank says") {
  const auto ops = make_reference_ops();
  const Groups one = Groups::single(), groups = Groups::over_mpi(Topology({.tp = world_size()}, world_size()));
  for (const ModelConfig& config : {sharable(0, 1), sharable(4)}) {
    Model alone(config, one, *ops, DType::f64), model(config, groups, *ops, DType::f64);
    fill(alone);
    fill(model);
    Decoder expected(alone, 8), found(model, 8);
    for (const std::vector<std::int32_t>& tokens : {std::vector<std::int32_t>{3, 1, 22}, {7}, {5, 5}, {0}, {9}}) {
      const std::vector<float> want = expected.append(tokens), have = found.append(tokens);
      for (std::size_t v = 0; v < want.size(); ++v) CHECK(have[v] == doctest::Approx(want[v]).epsilon(1e-6));
    }
    CHECK_THROWS_AS(found.append(std::vector<std::int32_t>{1}), Error);
  }
}

TEST_CASE("sizes that can't be shared are refused with both numbers") {
  const auto refusal = [](ModelConfig config, const Layout& layout) -> std::string {
    const auto ops = make_reference_ops();
    const Groups groups = Groups::over_mpi(Topology(layout, world_size()));
    try {
      Model model(config, groups, *ops, DType::f64);
      return "";
    } catch (const Error& error) {
      CHECK(error.status() == Status::usage);
      return error.what();
    }
  };
  const int ranks = world_size();
  const std::string tensor = "parallel.tensor = " + std::to_string(ranks);
  ModelConfig config = sharable(0);
  config.intermediate_size = ranks + 1;
  CHECK(refusal(config, {.tp = ranks}).find("model.intermediate_size = " + std::to_string(ranks + 1)) !=
        std::string::npos);
  config = sharable(0);
  config.heads = config.kv_heads = ranks + 1;
  CHECK(refusal(config, {.tp = ranks}).find(tensor) != std::string::npos);
  config = sharable(0);
  config.vocab_size = ranks - 1;
  CHECK(refusal(config, {.tp = ranks}).find("model.vocab_size") != std::string::npos);
  config = sharable(ranks);
  config.intermediate_size = ranks + 1;
  CHECK(refusal(config, {.etp = ranks}).find("parallel.expert_tensor = " + std::to_string(ranks)) != std::string::npos);
}
