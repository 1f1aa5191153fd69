// Upcycling against Eq. 4 of the paper written out element by element, and its independence of the layout.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "checkpoint_support.hpp"
#include "dropcycle/core/random.hpp"
#include "dropcycle/upcycle/upcycle.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

ModelConfig tiny(std::int64_t experts) {
  return {.vocab_size = 11,
          .hidden_size = 12,
          .intermediate_size = 23,
          .layers = 2,
          .heads = 3,
          .kv_heads = 1,
          .head_size = 4,
          .experts = experts};
}

InitConfig options(const std::string& method, double ratio) {
  InitConfig init;
  init.method = method;
  init.ratio = ratio;
  init.seed = 42;
  return init;
}

// Weights of a dense model: any number of tensors, made up by name; a mean that isn't zero, so that it shows.
template <class T>
class DenseModel {
 public:
  std::vector<T>& values(const std::string& name, const Shape& shape) {
    auto [place, fresh] = weights_.try_emplace(name, static_cast<std::size_t>(shape.elements()));
    if (fresh) {
      RandomStream(7, Purpose::test, name).fill_normal(Tensor(place->second.data(), shape), 0, 0.3, 0.05);
    }
    return place->second;
  }
  ReadWeight reader() {
    return [this](const ShardedTensor& out) {
      ++reads[out.name];
      largest_read = std::max(largest_read, out.local.bytes());
      std::vector<T>& all = values(out.name, out.global_shape);
      for_each_run(out, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) {
          out.local.as<T>()[local + i] = all[static_cast<std::size_t>(global + i)];
        }
      });
    };
  }
  std::map<std::string, int> reads;
  std::int64_t largest_read = 0;

 private:
  std::map<std::string, std::vector<T>> weights_;
};

ParameterSpec expert_spec(const ModelConfig& moe, std::int64_t layer, std::int64_t expert, FfnMatrix matrix) {
  const bool down = matrix == FfnMatrix::down;
  return {
      .name = fmt::format("layers.{}.moe.experts.{}.{}", layer, expert, name(matrix)),
      .shape = down ? Shape{moe.hidden_size, moe.intermediate_size} : Shape{moe.intermediate_size, moe.hidden_size}};
}

template <class T>
std::vector<T> fill_whole(Upcycler& upcycler, const ParameterSpec& spec) {
  std::vector<T> values(static_cast<std::size_t>(spec.shape.elements()));
  upcycler.fill(spec, whole(spec.name, Tensor(values.data(), spec.shape)));
  return values;
}

// The block's statistics as the definition has them.
template <class T>
std::pair<double, double> naive_statistics(const std::vector<T>& dense, const Shape& shape,
                                           const std::set<std::int64_t>& dropped, bool columns) {
  long double sum = 0, squares = 0;
  std::int64_t count = 0;
  for (int pass = 0; pass < 2; ++pass) {
    for (std::int64_t i = 0; i < shape.elements(); ++i) {
      const std::int64_t neuron = columns ? i % shape[1] : i / shape[1];
      if (!dropped.contains(neuron)) continue;
      const long double value = dense[static_cast<std::size_t>(i)];
      if (pass == 0) {
        sum += value;
        ++count;
      } else {
        squares += (value - sum / static_cast<long double>(count)) * (value - sum / static_cast<long double>(count));
      }
    }
  }
  if (count == 0) return {0, 0};
  return {static_cast<double>(sum / static_cast<long double>(count)),
          static_cast<double>(std::sqrt(squares / static_cast<long double>(count)))};
}

template <class T>
void check_against_definition(const InitConfig& init) {
  const ModelConfig moe = tiny(3);
  DenseModel<T> dense;
  Upcycler upcycler(moe, tiny(0), init, dense.reader());
  for (std::int64_t layer = 0; layer < moe.layers; ++layer) {
    for (const FfnMatrix matrix : {FfnMatrix::gate, FfnMatrix::up, FfnMatrix::down}) {
      for (std::int64_t expert = 0; expert < moe.experts; ++expert) {
        const ParameterSpec spec = expert_spec(moe, layer, expert, matrix);
        const std::vector<T> values = fill_whole<T>(upcycler, spec);
        const std::vector<T>& old = dense.values(fmt::format("layers.{}.mlp.{}", layer, name(matrix)), spec.shape);
        const auto indices = index_set(init, moe.intermediate_size, layer, expert, matrix);
        const std::set<std::int64_t> dropped(indices.begin(), indices.end());
        const bool columns = matrix == FfnMatrix::down, noise = init.method == "noise";
        const auto [mean, deviation] = naive_statistics(old, spec.shape, dropped, columns);
        const DroppedBlock& block = upcycler.blocks().back();
        CHECK(block.layer == layer);
        CHECK(block.expert == expert);
        CHECK(block.matrix == matrix);
        CHECK(block.neurons == static_cast<std::int64_t>(dropped.size()));
        CHECK(!(std::fabs(block.mean - mean) > 1e-13));
        CHECK(!(std::fabs(block.standard_deviation - deviation) > 1e-13));
        const RandomStream stream(init.seed, noise ? Purpose::noise : Purpose::drop, spec.name);
        int wrong = 0;
        for (std::int64_t i = 0; i < spec.shape.elements(); ++i) {
          const auto place = static_cast<std::size_t>(i);
          const double draw = stream.normal(static_cast<std::uint64_t>(i));
          const double made = noise ? static_cast<double>(old[place]) + init.noise_std * draw
                                    : block.mean + block.standard_deviation * draw;
          const bool out = dropped.contains(columns ? i % spec.shape[1] : i / spec.shape[1]);
          wrong += values[place] != (out ? static_cast<T>(made) : old[place]);
        }
        CHECK_MESSAGE(wrong == 0, spec.name);
      }
    }
  }
}

}  // namespace

TEST_CASE("|S| = floor(r F) exactly, for r as it was written") {
  for (std::int64_t thousandths = 0; thousandths <= 1000; ++thousandths) {
    const double ratio = std::stod(fmt::format("{}.{:03}", thousandths / 1000, thousandths % 1000));
    for (const std::int64_t neurons : {1, 3, 10, 100, 997, 1000, 1792, 2048, 7168, 14336, 100003}) {
      REQUIRE(dropped_neurons(ratio, neurons) == thousandths * neurons / 1000);
    }
  }
  CHECK(static_cast<int>(0.29 * 100) == 28);  // what the obvious code gives
  CHECK(dropped_neurons(0.29, 100) == 29);
  CHECK(dropped_neurons(0.07, 100) == 7);
  CHECK(dropped_neurons(1e-5, 99999) == 0);
  CHECK(dropped_neurons(1e-5, 100000) == 1);
  CHECK(dropped_neurons(1e-300, 1 << 30) == 0);
  CHECK(dropped_neurons(0.1 + 0.2, 10) == 3);  // 0.30000000000000004
  CHECK(dropped_neurons(1.0 / 3, 3) == 0);     // 0.3333333333333333
  for (const double bad : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS_WITH_AS(dropped_neurons(bad, 10), doctest::Contains("expected a number from 0"), Error);
  }
}

TEST_CASE("index sets: distinct neurons, shared by the three matrices or drawn for each, independent of each other") {
  InitConfig init = options("drop", 0.5);
  constexpr std::int64_t kNeurons = 200;
  std::vector<int> uses(kNeurons);
  double common = 0;
  std::set<std::int64_t> before;
  for (std::int64_t expert = 0; expert < 400; ++expert) {
    const auto indices = index_set(init, kNeurons, 1, expert, FfnMatrix::gate);
    const std::set<std::int64_t> distinct(indices.begin(), indices.end());
    REQUIRE(distinct.size() == 100);
    CHECK(std::ranges::is_sorted(indices));
    CHECK((*distinct.begin() >= 0 && *distinct.rbegin() < kNeurons));
    for (const std::int64_t index : indices) {
      ++uses[static_cast<std::size_t>(index)];
      common += before.contains(index);
    }
    before = distinct;
    CHECK(indices == index_set(init, kNeurons, 1, expert, FfnMatrix::down));
    CHECK(indices != index_set(init, kNeurons, 2, expert, FfnMatrix::gate));
  }
  // A neuron is in 400 sets with probability 1/2: 200 ± 5 standard deviations of 10.
  for (const int use : uses) CHECK(!(std::abs(use - 200) > 50));
  // Two sets share 50 of 100 neurons on average; the mean of 399 pairs is within 5 of its standard deviations (0.18).
  CHECK(!(std::fabs(common / 399 - 50) > 0.9));
  init.index_sets = "per_matrix";
  CHECK(index_set(init, kNeurons, 0, 0, FfnMatrix::gate) != index_set(init, kNeurons, 0, 0, FfnMatrix::up));
  CHECK(index_set(init, kNeurons, 0, 0, FfnMatrix::up) != index_set(init, kNeurons, 0, 0, FfnMatrix::down));
  init.method = "naive";
  CHECK(index_set(init, kNeurons, 0, 0, FfnMatrix::up).empty());
}

TEST_CASE("drop and noise are what their formulas say, weight by weight") {
  for (const double ratio : {0.0, 0.05, 0.29, 0.5, 1.0}) {
    check_against_definition<float>(options("drop", ratio));
    check_against_definition<double>(options("drop", ratio));
    check_against_definition<float>(options("noise", ratio));
  }
  InitConfig per_matrix = options("drop", 0.5);
  per_matrix.index_sets = "per_matrix";
  check_against_definition<float>(per_matrix);
  check_against_definition<float>(options("naive", 0.5));
}

TEST_CASE("any part of a weight is the same bits as in the whole, and bf16 is the rounded f32") {
  const ModelConfig moe = tiny(3);
  const RandomStream random(5, Purpose::test, "parts");
  std::uint64_t draw = 0;
  std::vector<ParameterSpec> specs = {
      expert_spec(moe, 1, 2, FfnMatrix::gate),
      expert_spec(moe, 1, 2, FfnMatrix::down),
      {.name = "layers.0.moe.router", .shape = {3, 12}, .initial = Initial::router},
      {.name = "embedding", .shape = {11, 12}},
  };
  for (const char* method : {"drop", "noise", "scratch"}) {
    const InitConfig init = options(method, 0.4);
    DenseModel<float> dense;
    const auto fill = [&](const ParameterSpec& spec, const ShardedTensor& out) {
      initialise(moe, init, {&spec, 1}, {&out, 1}, tiny(0), dense.reader());
    };
    for (const ParameterSpec& spec : specs) {
      std::vector<float> all(static_cast<std::size_t>(spec.shape.elements()));
      fill(spec, whole(spec.name, Tensor(all.data(), spec.shape)));
      for (int part = 0; part < 12; ++part) {
        Shape offset = spec.shape, shape = spec.shape;
        for (int dim = 0; dim < 2; ++dim) {
          offset.set(dim, random.bits(draw++) % spec.shape[dim]);
          shape.set(dim, random.bits(draw++) % (spec.shape[dim] - offset[dim] + 1));
        }
        std::vector<float> values(static_cast<std::size_t>(shape.elements()));
        std::vector<BF16> rounded(values.size());
        fill(spec, {spec.name, spec.shape, offset, Tensor(values.data(), shape), true});
        if (spec.name != "embedding") {  // the test's dense model has one type
          fill(spec, {spec.name, spec.shape, offset, Tensor(rounded.data(), shape), true});
        }
        int wrong = 0;
        for (std::int64_t i = 0; i < shape.elements(); ++i) {
          const auto place = static_cast<std::size_t>(i);
          const std::int64_t row = offset[0] + i / shape[1], column = offset[1] + i % shape[1];
          wrong += values[place] != all[static_cast<std::size_t>(row * spec.shape[1] + column)];
          if (spec.name != "embedding") wrong += rounded[place].bits != BF16(values[place]).bits;
        }
        CHECK_MESSAGE(wrong == 0, spec.name);
      }
    }
  }
}

TEST_CASE("an MoE is filled with one dense matrix in memory at a time, each read once") {
  const ModelConfig moe = tiny(4);
  std::vector<ParameterSpec> specs;
  for (std::int64_t layer = 0; layer < moe.layers; ++layer) {
    specs.push_back({.name = fmt::format("layers.{}.mlp_norm", layer), .shape = {12}, .initial = Initial::ones});
    for (std::int64_t expert = 0; expert < moe.experts; ++expert) {
      for (const FfnMatrix matrix : {FfnMatrix::gate, FfnMatrix::up, FfnMatrix::down}) {
        specs.push_back(expert_spec(moe, layer, expert, matrix));
      }
    }
  }
  std::vector<std::vector<float>> memory;
  std::vector<ShardedTensor> local;
  for (const ParameterSpec& spec : specs) {
    memory.emplace_back(static_cast<std::size_t>(spec.shape.elements()));
    local.push_back(whole(spec.name, Tensor(memory.back().data(), spec.shape)));
  }
  DenseModel<float> dense;
  std::int64_t last = 0, all = 0;
  const auto blocks = initialise(moe, options("drop", 0.5), specs, local, tiny(0), dense.reader(),
                                 [&](std::int64_t done, std::int64_t total) {
                                   last = done;
                                   all = total;
                                 });
  CHECK(blocks.size() == 2 * 4 * 3);
  CHECK(dense.reads.size() == 2 * 4);
  for (const auto& [name, count] : dense.reads) CHECK_MESSAGE(count == 1, name);
  CHECK(dense.largest_read == 12 * 23 * 4);
  CHECK(last == all);
  CHECK(all == 2 * (12 + 4 * 3 * 12 * 23) * 4);
}

TEST_CASE("fresh weights have the distribution that was asked for") {
  constexpr std::int64_t kCount = 200000;
  std::vector<double> values(kCount);
  const auto draw = [&](Initial initial, const std::string& router) {
    InitConfig init;
    init.router = router;
    const ParameterSpec spec{.name = "x", .shape = {kCount}, .initial = initial};
    initialise_fresh(spec, init, 0.05, whole("x", Tensor(values.data(), {kCount})));
    double sum = 0, squares = 0, least = values[0], most = values[0];
    for (const double value : values) {
      sum += value;
      squares += value * value;
      least = std::min(least, value);
      most = std::max(most, value);
    }
    const double mean = sum / kCount;
    return std::array{mean, std::sqrt(squares / kCount - mean * mean), least, most};
  };
  const auto near = [](double value, double expected, double tolerance) {
    CHECK(!(std::fabs(value - expected) > tolerance));
  };
  for (const auto& [router, deviation] : {std::pair{"normal_002", 0.02}, {"normal_02887", 0.2887}}) {
    const auto [mean, spread, least, most] = draw(Initial::router, router);
    near(mean, 0, 5 * deviation / std::sqrt(kCount));
    near(spread, deviation, 5 * deviation / std::sqrt(2.0 * kCount));
    CHECK(most > 3 * deviation);
    CHECK(least < -3 * deviation);
  }
  for (const auto& [router, first, second] :
       {std::tuple{"uniform_002", -0.034641016, 0.034641016}, {"uniform_05", -0.5, 0.5}, {"uniform_01", 0.0, 1.0}}) {
    const auto [mean, spread, least, most] = draw(Initial::router, router);
    const double deviation = (second - first) / std::sqrt(12.0);
    near(mean, (first + second) / 2, 5 * deviation / std::sqrt(kCount));
    near(spread, deviation, 0.01 * deviation);
    CHECK((least >= first && least < first + 1e-4));
    CHECK((most <= second && most > second - 1e-4));
  }
  near(draw(Initial::normal, "normal_002")[1], 0.05, 0.001);
  CHECK(draw(Initial::ones, "normal_002")[1] == 0);
  CHECK(values[7] == 1);
  CHECK_THROWS_WITH_AS(draw(Initial::router, "normal"), doctest::Contains("unknown router"), Error);
}

TEST_CASE("a dense model that doesn't fit is refused with both sizes") {
  const auto message = [](const ModelConfig& dense, const ModelConfig& moe) -> std::string {
    try {
      Upcycler(moe, dense, options("drop", 0.5), {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message(tiny(0), tiny(2)).empty());
  ModelConfig other = tiny(0);
  other.intermediate_size = 24;
  CHECK(message(other, tiny(2)).find("model.intermediate_size is 24 there and 23 here") != std::string::npos);
  other = tiny(0);
  other.kv_heads = 3;
  CHECK(message(other, tiny(2)).find("model.kv_heads is 3 there and 1 here") != std::string::npos);
  other = tiny(0);
  other.tie_embeddings = true;
  CHECK(message(other, tiny(2)).find("model.tie_embeddings is true there and false here") != std::string::npos);
  CHECK(message(tiny(8), tiny(2)).find("has 8 experts already") != std::string::npos);
  CHECK(message(tiny(0), tiny(0)).find("model.experts is 0") != std::string::npos);
}
