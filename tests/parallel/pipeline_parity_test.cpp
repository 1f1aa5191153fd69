// A pipeline against one rank: losses and every gradient in double for every schedule, with uneven layers, tied
// embeddings and both scopes of the balancing loss; what is alive, what is allocated; evaluation and generation.
#include "dropcycle/model/decoder.hpp"
#include "model_parity.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

ModelConfig layers(ModelConfig config, std::int64_t count, bool tied = false) {
  config.layers = count;
  config.tie_embeddings = tied;
  return config;
}

PipelineOptions schedule(const char* name, int chunks = 1, std::vector<std::int64_t> layers = {}) {
  return {parse_pipeline_schedule(name), chunks, std::move(layers)};
}

ParityCase with_even_sequences(ParityCase c) {
  c.sequence = 8;
  return c;
}

// Every layout of the ranks with a pipeline: all of them in it, or two stages of data, expert or context parallel
// ranks.
void check_all_layouts(const ParityCase& c) {
  const int size = world_size();
  check_parity(c, {.pp = size});
  if (size != 4) return;
  check_parity(c, {.pp = 2});
  check_parity(with_even_sequences(c), {.cp = 2, .pp = 2});
  if (c.config.experts % 2 == 0 && c.config.is_moe()) check_parity(c, {.pp = 2, .ep = 2});
}

Groups pipeline_of_all() { return Groups::over_mpi(Topology({.pp = world_size()}, world_size())); }

// The parameter is on some stage.
void spoil(Model& model, const std::string& name) {
  for (const ShardedTensor& part : model.parameters().sharded_masters()) {
    if (part.name == name) std::fill_n(part.local.as<double>(), part.local.elements(), NAN);
  }
  model.weights_changed();
}

}  // namespace

TEST_CASE("dense, one forward and one backward in turns") {
  const auto training = training_with(BalanceScope::all_layers);
  check_all_layouts({.name = "dense", .config = layers(tiny_dense(), 4), .training = training, .microbatches = 8});
  check_all_layouts({.name = "tied", .config = layers(tiny_dense(), 5, true), .training = training, .microbatches = 8});
}

TEST_CASE("MoE: the balancing loss over all layers, or per layer, z-loss and jitter") {
  for (const BalanceScope scope : {BalanceScope::all_layers, BalanceScope::per_layer}) {
    check_all_layouts({.name = "MoE",
                       .config = layers(tiny_moe(4, 2), 5),
                       .training = training_with(scope, 0.3, 0.1),
                       .microbatches = 8});
  }
}

TEST_CASE("all forwards first") {
  check_all_layouts({.name = "gpipe",
                     .config = layers(tiny_moe(4, 2), 4),
                     .training = training_with(BalanceScope::all_layers),
                     .microbatches = 8,
                     .pipeline = schedule("gpipe")});
}

TEST_CASE("interleaved, also with microbatches that the stages don't divide") {
  if (world_size() == 1) return;
  for (const int microbatches : {12, 6}) {
    check_all_layouts({.name = "interleaved",
                       .config = layers(tiny_moe(4, 2), 9, microbatches == 6),
                       .training = training_with(BalanceScope::all_layers, 0.1),
                       .microbatches = microbatches,
                       .pipeline = schedule("interleaved", 2)});
  }
}

TEST_CASE("uneven layers and microbatches") {
  const std::vector<std::int64_t> all = {3, 1, 2, 1};
  const std::vector<std::int64_t> given(all.begin(), all.begin() + world_size());
  std::int64_t sum = 0;
  for (const std::int64_t count : given) sum += count;
  check_parity({.name = "uneven",
                .config = layers(tiny_moe(3, 2), sum, true),
                .training = training_with(BalanceScope::all_layers, 0.2),
                .uneven = true,
                .microbatches = 7,
                .pipeline = schedule("1f1b", 1, given)},
               {.pp = world_size()});
}

TEST_CASE("recompute") {
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    auto training = training_with(BalanceScope::all_layers, 0.1, 0.1);
    training.recompute = recompute;
    check_all_layouts(
        {.name = "recompute", .config = layers(tiny_moe(4, 2), 4), .training = training, .microbatches = 8});
  }
}

TEST_CASE("steps after the first allocate nothing") {
  const auto ops = make_reference_ops();
  const Groups groups = pipeline_of_all();
  for (const char* name : {"gpipe", "1f1b", "interleaved"}) {
    CAPTURE(name);
    const int chunks = std::string(name) == "interleaved" ? 2 : 1;
    if (chunks == 2 && groups.world().size() == 1) continue;
    ParityCase c{.name = name,
                 .config = layers(tiny_dense(), 8),
                 .training = training_with(BalanceScope::all_layers),
                 .sequence = 40,
                 .microbatches = 3,
                 .pipeline = schedule(name, chunks)};
    // Every layer keeps more than a block of an arena.
    c.config.hidden_size = c.config.head_size = 2;
    c.config.heads = c.config.kv_heads = 1;
    c.config.intermediate_size = 5000;
    Model model(c.config, groups, *ops, DType::f64, c.pipeline);
    prepare(model, c);
    run(model, c, groups, nullptr);
    const std::int64_t before = model.system_allocations(), peak = model.peak_activation_bytes();
    for (int step = 0; step < 2; ++step) run(model, c, groups, nullptr);
    CHECK(model.system_allocations() == before);
    CHECK(model.peak_activation_bytes() == peak);
  }
}

TEST_CASE("evaluation: the loss on the last stage, each layer's choices on its own") {
  const auto ops = make_reference_ops();
  const Groups groups = pipeline_of_all(), one = Groups::single();
  const ModelConfig config = layers(tiny_moe(4, 2), 8);
  const bool last = groups.world().rank() == groups.world().size() - 1;
  Model alone(config, one, *ops, DType::f64);
  Model model(config, groups, *ops, DType::f64, schedule("1f1b"));
  fill(alone);
  fill(model);
  for (std::uint64_t i = 0; i < 5; ++i) {
    const TinyBatch data(config, 2, kSequence, false, i);
    const MicrobatchLosses expected = alone.evaluate(data.batch);
    MicrobatchLosses found = model.evaluate(data.batch);
    CHECK(found.tokens == expected.tokens);
    CHECK((close(found.language, last ? expected.language : 0.0)));
    groups.world().all_reduce(Tensor(found.routing.counts.data(), {std::ssize(found.routing.counts)}));
    CHECK(found.routing.counts == expected.routing.counts);
  }
}

TEST_CASE("generation gives every stage the logits") {
  const auto ops = make_reference_ops();
  const Groups groups = pipeline_of_all(), one = Groups::single();
  for (const bool interleaved : {false, true}) {
    if (interleaved && groups.world().size() == 1) continue;
    const ModelConfig config = layers(tiny_moe(4, 2), 8, interleaved);
    Model alone(config, one, *ops, DType::f64);
    Model model(config, groups, *ops, DType::f64, interleaved ? schedule("interleaved", 2) : schedule("1f1b"));
    fill(alone);
    fill(model);
    const TinyBatch data(config, 1, 9);
    Decoder expected(alone, 9), found(model, 9);
    for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 5}, {5, 1}, {6, 1}, {7, 2}}) {
      const auto piece = std::span(data.tokens).subspan(first, count);
      CHECK(found.append(piece) == expected.append(piece));
    }
  }
}

TEST_CASE("the stage where a NaN comes up names the layer, the others nothing") {
  const auto ops = make_reference_ops();
  const Groups groups = pipeline_of_all();
  const ModelConfig config = layers(tiny_dense(), 8);
  const TinyBatch data(config, 1, kSequence);
  for (const bool interleaved : {false, true}) {
    if (interleaved && groups.world().size() == 1) continue;
    for (const std::string place : {"embedding", "layers.1.attention", "layers.5.mlp", "final_norm"}) {
      CAPTURE(place);
      Model model(config, groups, *ops, DType::f64, interleaved ? schedule("interleaved", 2) : schedule("1f1b"));
      fill(model);
      CHECK(model.first_non_finite(data.batch) == "");
      spoil(model, place.ends_with("attention") ? place + ".output" : place.ends_with("mlp") ? place + ".down" : place);
      std::string found;
      for (const std::string& text : groups.world().all_gather_text(model.first_non_finite(data.batch))) {
        if (!text.empty()) CHECK(found == "");  // one stage speaks
        found += text;
      }
      CHECK(found == place);
    }
  }
}
