// The files in configs/: every one loads, and they are the paper's models and runs.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "dropcycle/core/config.hpp"
#include "dropcycle/model/cost.hpp"

using namespace dropcycle;

namespace {

const std::filesystem::path kConfigs = std::filesystem::path(DROPCYCLE_SOURCE_DIR) / "configs";

Config load(const std::string& name) {
  Config config = load_config(kConfigs / name, {});
  resolve(config);
  return config;
}

// Tokens of a whole run in billions.
double billion_tokens(const Config& config) {
  return static_cast<double>(config.train.steps * config.train.global_batch * config.data.sequence_length) / 1e9;
}

}  // namespace

TEST_CASE("every configuration file loads, and resolves unless it is only a part of others") {
  int files = 0;
  std::set<std::string> outputs;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kConfigs)) {
    if (entry.path().extension() != ".toml") continue;
    CAPTURE(entry.path().string());
    Config config = load_config(entry.path(), {});
    ++files;
    if (config.model.vocab_size > 0) resolve(config);
    if (config.model.vocab_size == 0 || entry.path().parent_path().filename() != "experiment") continue;
    CHECK(config.train.steps > 0);
    CHECK(outputs.insert(config.train.output).second);  // no two runs into one folder
  }
  CHECK(files >= 30);
}

TEST_CASE("models have the paper's parameter counts (Table 4)") {
  const auto millions = [](const std::string& name) {
    const ParameterCount count = count_parameters(load("model/" + name + ".toml").model);
    return std::pair(std::llround(static_cast<double>(count.active) / 1e5),
                     std::llround(static_cast<double>(count.total) / 1e5));
  };
  using Pair = std::pair<long long, long long>;  // active and all, in 0.1 million
  CHECK(millions("dense_152m") == Pair{1523, 1523});
  CHECK(millions("dense_1_5b") == Pair{15581, 15581});
  CHECK(millions("dense_3_7b") == Pair{37829, 37829});
  CHECK(millions("dense_13b") == Pair{137078, 137078});
  CHECK(millions("moe_8x152m") == Pair{1901, 4166});
  CHECK(millions("moe_8x1_5b") == Pair{26154, 89572});
  CHECK(millions("moe_8x3_7b") == Pair{58975, 185810});
  CHECK(millions("quickstart_dense") == Pair{73, 73});
  CHECK(millions("quickstart_moe") == Pair{97, 239});
}

TEST_CASE("a mixture of experts fits its dense parent") {
  for (const std::string size : {"152m", "1_5b", "3_7b"}) {
    ModelConfig moe = load("model/moe_8x" + size + ".toml").model;
    CHECK(moe.experts == 8);
    CHECK(moe.experts_per_token == 2);
    moe.experts = 0;
    CHECK(moe == load("model/dense_" + size + ".toml").model);
  }
}

TEST_CASE("runs have the paper's hyper-parameters (Appendix A.4)") {
  const std::map<std::string, double> dense_tokens = {{"152m", 2072}, {"1_5b", 1000}, {"3_7b", 2072}, {"13b", 2072}};
  for (const auto& [size, tokens] : dense_tokens) {
    CAPTURE(size);
    const Config config = load("experiment/dense_" + size + ".toml");
    const double step = billion_tokens(config) / static_cast<double>(config.train.steps);
    CHECK(billion_tokens(config) >= tokens);
    CHECK(billion_tokens(config) < tokens + step);
    CHECK(config.train.global_batch == (size == "152m" ? 512 : 1024));
    CHECK(config.optimizer.learning_rate == 3e-4);
    CHECK(config.optimizer.min_learning_rate == 3e-5);
    CHECK(config.optimizer.constant_steps == 2000);
  }
  for (const std::string name : {"8x152m_scratch", "8x152m_naive", "8x152m_noise", "8x152m_drop", "8x1_5b_scratch",
                                 "8x1_5b_naive", "8x1_5b_noise", "8x1_5b_drop", "8x3_7b_scratch", "8x3_7b_drop"}) {
    CAPTURE(name);
    const Config config = load("experiment/moe_" + name + ".toml");
    const double step = billion_tokens(config) / static_cast<double>(config.train.steps);
    CHECK(billion_tokens(config) >= 500);
    CHECK(billion_tokens(config) < 500 + step);
    CHECK(config.train.global_batch == (name.starts_with("8x152m") ? 512 : 1024));
    CHECK(config.train.balance_coefficient == 0.02);
    CHECK(config.train.balance_scope == "all_layers");
    CHECK(config.model.router_mode == "topk_softmax");
    CHECK(config.model.experts == 8);
    CHECK(config.optimizer.learning_rate == 2e-4);
    CHECK(config.optimizer.min_learning_rate == 2e-5);
    CHECK(config.init.method == name.substr(name.rfind('_') + 1));
    if (config.init.method != "scratch") CHECK(config.init.router == "uniform_002");
    if (config.init.method == "drop") CHECK(config.init.ratio == 0.5);
    // What dense and MoE runs share.
    CHECK(config.data.sequence_length == 4096);
    CHECK(config.optimizer.schedule == "cosine");
    CHECK(config.optimizer.warmup_steps == 2000);
    CHECK(config.optimizer.beta1 == 0.9);
    CHECK(config.optimizer.beta2 == 0.95);
    CHECK(config.optimizer.epsilon == 1e-8);
    CHECK(config.optimizer.weight_decay == 0.1);
    CHECK(config.optimizer.clip == 1.0);
    CHECK(config.optimizer.decay_norms);
    CHECK(config.optimizer.decay_embeddings);
    CHECK(config.optimizer.decay_router);
  }
}

TEST_CASE("the quickstart's arms differ in their start alone") {
  const Config scratch = load("experiment/quickstart_scratch.toml");
  for (const std::string method : {"naive", "drop"}) {
    Config config = load("experiment/quickstart_" + method + ".toml");
    CHECK(config.init.method == method);
    CHECK(config.init.from == load("experiment/quickstart_dense.toml").train.output);
    config.init = scratch.init;
    config.train.output = scratch.train.output;
    CHECK(config == scratch);
  }
  CHECK(scratch.data.valid.size() == 5);
}
