// Times of steps against published ones, and products against measured ones.
#include "dropcycle/model/step_time.hpp"

#include <doctest/doctest.h>

#include <cmath>

using namespace dropcycle;

namespace {

using Settings = std::vector<std::string>;

std::string set(const char* key, int value) { return std::string(key) + "=" + std::to_string(value); }

struct ModelSizes {
  int hidden, width, layers, heads;
};
constexpr ModelSizes k8x7b{4096, 14336, 32, 32}, k8x22b{6144, 16384, 56, 48};

struct Layouts {
  int tensor, experts, expert_tensor, pipeline, virtual_stages;
};

// 2 of 8 experts, 8 key/value heads of 128, sequences of 4,096 tokens, one a microbatch.
Config mixtral(const ModelSizes& m, const Layouts& l, int batch) {
  Settings settings = {"model.kv_heads=8",          "model.head_size=128",    "model.experts=8",
                       "model.experts_per_token=2", "model.vocab_size=32000", "data.sequence_length=4096",
                       "train.micro_batch=1"};
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, int>>{{"model.hidden_size", m.hidden},
                                                          {"model.intermediate_size", m.width},
                                                          {"model.layers", m.layers},
                                                          {"model.heads", m.heads},
                                                          {"train.global_batch", batch},
                                                          {"parallel.tensor", l.tensor},
                                                          {"parallel.expert", l.experts},
                                                          {"parallel.expert_tensor", l.expert_tensor},
                                                          {"parallel.pipeline", l.pipeline},
                                                          {"parallel.virtual_stages", l.virtual_stages}}) {
    settings.push_back(set(key, value));
  }
  if (l.virtual_stages > 1) settings.push_back("parallel.schedule=interleaved");
  Config config = parse_config(settings);
  resolve(config);
  return config;
}

struct Published {
  ModelSizes model;
  Layouts layout;
  int batch, ranks;
  double mfu;
};

// Megatron-Core on H100s: step_time.hpp names the sources.
const std::vector<Published> kPublished = {
    {k8x7b, {1, 8, 1, 4, 8}, 256, 64, 468.0 / 989.5}, {k8x22b, {2, 4, 2, 8, 7}, 1024, 128, 0.494},
    {k8x22b, {2, 4, 2, 8, 7}, 1024, 256, 0.480},      {k8x22b, {2, 4, 2, 8, 7}, 1024, 512, 0.455},
    {k8x22b, {2, 4, 2, 8, 7}, 1024, 1024, 0.423},     {k8x22b, {2, 4, 2, 8, 7}, 256, 128, 0.463},
    {k8x22b, {2, 8, 1, 8, 7}, 256, 128, 0.493},       {k8x22b, {4, 8, 4, 1, 1}, 256, 128, 0.366},
};

double modelled(const Published& p, const GpuCluster& cluster) {
  return step_time(mixtral(p.model, p.layout, p.batch), p.ranks, cluster, megatron_core_rules()).mfu;
}

// Of the largest relative error of all published steps.
double worst_error(const GpuCluster& cluster, const std::vector<Published>& published = kPublished) {
  double worst = 0;
  for (const Published& p : published) worst = std::max(worst, std::abs(modelled(p, cluster) / p.mfu - 1));
  return worst;
}

constexpr double kTolerance = 0.15;

}  // namespace

TEST_CASE("published steps of Megatron-Core within 15%") {
  for (const Published& p : kPublished) {
    const double mfu = modelled(p, {});
    INFO(p.ranks, " GPUs, batch ", p.batch, ": published ", p.mfu, ", model ", mfu);
    CHECK(std::abs(mfu / p.mfu - 1) <= kTolerance);
  }
}

// What the published steps tell about each assumption: what is wrong by this much doesn't pass.
TEST_CASE("a wrong assumption is found out") {
  CHECK(worst_error({}) <= kTolerance);
  const auto with = [](double GpuCluster::*member, double factor) {
    GpuCluster cluster;
    cluster.*member *= factor;
    return worst_error(cluster);
  };
  CHECK(!(with(&GpuCluster::product_rate, 2) <= kTolerance));
  CHECK(!(with(&GpuCluster::product_rate, 0.5) <= kTolerance));
  CHECK(!(with(&GpuCluster::sustained, 0.5) <= kTolerance));
  CHECK(!(with(&GpuCluster::bandwidth, 0.5) <= kTolerance));
  CHECK(!(with(&GpuCluster::network_link, 1.0 / 3) <= kTolerance));  // half of it would pass
  GpuCluster slow_links;
  slow_links.node_link *= 0.5, slow_links.network_link *= 0.5;
  CHECK(!(worst_error(slow_links) <= kTolerance));
  auto without_virtual_stages = kPublished;
  for (Published& p : without_virtual_stages) p.layout.virtual_stages = 1;
  CHECK(!(worst_error({}, without_virtual_stages) <= kTolerance));
}

TEST_CASE("products as measured") {
  GpuCluster cluster;
  cluster.sustained = 1;  // short runs
  const double columns = 8192, bytes = columns * columns * 2;
  const std::vector<std::pair<double, double>> measured = {
      {256, 386e12}, {512, 520e12}, {1024, 628e12}, {2048, 705e12}, {4096, 736e12}, {8192, 758e12}, {16384, 766e12}};
  for (const auto& [k, rate] : measured) {
    INFO("K ", k);
    const double modelled = 2 * columns * columns * k / product_seconds(cluster, columns, columns, k, bytes);
    CHECK(std::abs(modelled / rate - 1) <= 0.11);
  }
  // 780e12: H. He, "H100 peak matmul FLOPS".
  const double tuned = 2 * 4224.0 * 2048 * 8192 / product_seconds(cluster, 4224, 2048, 8192, 4224.0 * 2048 * 2);
  CHECK(std::abs(tuned / 780e12 - 1) <= 0.1);
}

TEST_CASE("few rows can't fill the processors") {
  const GpuCluster cluster;
  const auto rate = [&](double m) { return 2 * m * 4096 * 4096 / product_seconds(cluster, m, 4096, 4096, m * 8192); };
  CHECK(rate(64) < 0.25 * rate(4096));
  CHECK(rate(512) < rate(4096));
}

TEST_CASE("collectives: links of a node, and between nodes") {
  const GpuCluster m;
  const auto line = [](int count, int stride) {
    std::vector<int> ranks;
    for (int i = 0; i < count; ++i) ranks.push_back(i * stride);
    return ranks;
  };
  constexpr double kBytes = 1e9;
  const double inside = collective_seconds(m, Collective::all_gather, line(8, 1), kBytes);
  CHECK(inside == doctest::Approx(m.node_latency + 0.875e9 / m.node_link));
  const double across = collective_seconds(m, Collective::all_gather, line(8, 8), kBytes);
  CHECK(across == doctest::Approx(3 * m.network_latency + 0.875e9 / m.network_link));
  // Two whole nodes: eight cards a node carry the ring.
  const double two = collective_seconds(m, Collective::all_gather, line(16, 1), kBytes);
  CHECK(two == doctest::Approx(4 * m.network_latency + 0.9375e9 / (8 * m.network_link)));
  // All-to-all over two nodes: 8 of 15 parts leave the node.
  const double exchange = collective_seconds(m, Collective::all_to_all, line(16, 1), kBytes);
  CHECK(exchange == doctest::Approx(m.network_latency + 1e9 * 8 / 15 / m.network_link));
  CHECK(collective_seconds(m, Collective::all_reduce, {3}, kBytes) == 0);
}

TEST_CASE("the search finds what fits, fastest first") {
  Config config = mixtral(k8x7b, {1, 1, 1, 1, 1}, 256);
  int tried = 0;
  const GpuCluster cluster;
  const auto found = fastest_layouts(config, 16, cluster, 5, tried);
  REQUIRE(found.size() == 5);
  CHECK(tried > 100);
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK(found[i].plan.fullest().total() <= cluster.memory_bytes - cluster.reserved_bytes);
    if (i > 0) CHECK(found[i - 1].time.total() <= found[i].time.total());
    CHECK(found[i].time.mfu > 0.05);
    CHECK(found[i].time.mfu < 0.7);
  }
  GpuCluster small;
  small.memory_bytes = 8e9;
  CHECK(fastest_layouts(config, 16, small, 5, tried).empty());
}
