// A sharded optimizer against a whole one: several steps give bitwise the same norms and weights for every layout of 2
// to 4 ranks, each rank keeps its share of masters and moments, and what the ranks keep covers every tensor exactly
// once.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../layers/tiny_model.hpp"
#include "dropcycle/ops/backends.hpp"
#include "dropcycle/optim/adamw.hpp"
#include "dropcycle/parallel/gradient_buckets.hpp"
#include "world.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

constexpr std::int64_t kSteps = 3;

struct Trained {
  std::vector<double> norms;
  std::vector<std::vector<std::byte>> weights;  // of every group
};

class Trainer {
 public:
  Trainer(const ModelConfig& config, const Groups& groups, Ops& ops, DType compute, bool shard)
      : groups_(groups),
        model(config, groups, ops, compute, {}, {.optimizer = shard, .bucket_bytes = 6000}),
        optimizer(model, groups, {.weight_decay = 0.1, .clip = 0.5, .decay_norms = false}) {
    ParameterStore& store = model.parameters();
    for (const ShardedTensor& part : store.sharded_gradients()) {
      const bool norm = part.name.find("norm") != std::string::npos;
      RandomStream(1, Purpose::test, part.name).fill_normal(part.local, 0, norm ? 1.0 : 0.0, norm ? 0.1 : 0.3);
    }
    store.take_weights_from_gradients(ops);
    for (const GradientGroup group : kGradientGroups) {
      buckets_.emplace_back(groups[replicas_of(group)], store.gradients(group), store.offsets(group),
                            BucketOptions{.bucket_bytes = store.shards().bucket_bytes, .gather = !shard});
    }
  }

  Trained run() {
    Trained result;
    ParameterStore& store = model.parameters();
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      for (const GradientGroup group : kGradientGroups) model.ops().fill_zero(store.gradients(group));
      const TinyBatch data(model.config(), 2, 6, true, static_cast<std::uint64_t>(10 * step + groups_.world().rank()));
      model.forward_backward(data.batch, training_with(BalanceScope::all_layers, 0.1), [&](const FlatRange& range) {
        buckets_[static_cast<std::size_t>(range.group)].mark_ready(range.first, range.last);
      });
      for (GradientBuckets& buckets : buckets_) buckets.finish();
      result.norms.push_back(optimizer.gradient_norm());
      optimizer.update(step, 1e-2, optimizer.clip_factor(result.norms.back()));
    }
    model.wait_for_weights({});
    for (const GradientGroup group : kGradientGroups) {
      const Tensor all = store.weights(group);
      const auto* bytes = static_cast<const std::byte*>(all.data);
      result.weights.emplace_back(bytes, bytes + all.bytes());
    }
    return result;
  }

 private:
  const Groups& groups_;

 public:
  Model model;
  AdamW optimizer;

 private:
  std::vector<GradientBuckets> buckets_;
};

// Elements of every parameter that the ranks write.
std::map<std::string, double> written(const Groups& groups, const std::vector<ShardedTensor>& parts,
                                      const std::vector<ParameterSpec>& all) {
  std::map<std::string, double> counts;
  std::vector<double> sums;
  for (const ParameterSpec& spec : all) counts[spec.name] = 0;
  for (const ShardedTensor& part : parts)
    counts.at(part.name) += part.writer ? static_cast<double>(part.local.elements()) : 0;
  for (const auto& [name, count] : counts) sums.push_back(count);
  groups.world().sum(sums);
  for (std::size_t i = 0; auto& [name, count] : counts) count = sums[i++];
  return counts;
}

void check(const ModelConfig& config, const Layout& layout, Ops& ops, DType compute) {
  const Topology topology(layout, world_size());
  CAPTURE(topology.describe());
  CAPTURE(std::string(name(compute)));
  const Groups groups = Groups::over_mpi(topology);
  Trainer whole(config, groups, ops, compute, false), sharded(config, groups, ops, compute, true);
  const Trained expected = whole.run(), found = sharded.run();
  CHECK(expected.norms == found.norms);
  CHECK(expected.norms.front() > 0.5);  // clipped
  CHECK(expected.weights == found.weights);

  // Memory: a replica keeps its pieces, together one copy of everything.
  const ParameterStore &store = sharded.model.parameters(), &other = whole.model.parameters();
  std::int64_t kept = 0;
  for (const GradientGroup group : kGradientGroups) {
    const int replicas = groups[replicas_of(group)].size();
    double sum = static_cast<double>(store.kept_elements(group));
    kept += store.kept_elements(group);
    groups[replicas_of(group)].sum({&sum, 1});
    CHECK(sum == static_cast<double>(store.elements(group)));
    // One element more for each bucket at most.
    const std::int64_t most = store.elements(group) / replicas + std::ssize(store.buckets(group));
    CHECK(store.kept_elements(group) <= most);
    CHECK(other.kept_elements(group) == store.elements(group));
  }
  CHECK(sharded.optimizer.bytes() == 2 * kept * size_bytes(accumulator_of(compute)));
  const bool fewer = compute == DType::bf16 && world_size() > 1;
  CHECK((store.bytes() < other.bytes()) == fewer);

  // Every element of every tensor is written by exactly one rank.
  const auto specs = Model::declare(config, Groups::single());
  const auto writes = PerGroup<bool>::of([&](GradientGroup group) { return groups[replicas_of(group)].rank() == 0; });
  for (const Trainer* trainer : {&whole, &sharded}) {
    const auto counts = written(groups, trainer->model.parameters().sharded_masters(writes), specs);
    for (const ParameterSpec& spec : specs) {
      CAPTURE(spec.name);
      CHECK(counts.at(spec.name) == static_cast<double>(spec.shape.elements()));
    }
  }
}

void check_layouts(const ModelConfig& config, Ops& ops, DType compute) {
  for (int experts = 1; experts <= world_size(); ++experts) {
    const bool fits = world_size() % experts == 0 && config.experts % experts == 0;
    if (fits && (config.is_moe() || experts == 1)) check(config, {.ep = experts}, ops, compute);
  }
}

}  // namespace

TEST_CASE("bitwise the weights of an optimizer that isn't sharded") {
  const auto cpu = make_cpu_ops({}), reference = make_reference_ops();
  for (const DType compute : {DType::f32, DType::bf16}) {
    check_layouts(tiny_dense(), *cpu, compute);
    check_layouts(tiny_moe(world_size() == 3 ? 3 : 4, 2), *reference, compute);
  }
}

TEST_CASE("kept parts are rectangles of the global tensors and hold their masters") {
  const auto ops = make_reference_ops();
  const Groups groups = Groups::over_mpi(Topology({}, world_size()));
  Model model(tiny_dense(), groups, *ops, DType::f64, {}, {.optimizer = true, .bucket_bytes = 700});
  ParameterStore& store = model.parameters();
  for (const ShardedTensor& part : store.sharded_gradients()) {
    for (std::int64_t i = 0; i < part.local.elements(); ++i) part.local.as<double>()[i] = static_cast<double>(i);
  }
  store.take_weights_from_gradients(*ops);
  std::map<std::string, int> parts;
  for (const ShardedTensor& part : store.sharded_masters()) {
    ++parts[part.name];
    for_each_run(part, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) {
        CHECK(part.local.as<double>()[local + i] == static_cast<double>(global + i));
      }
    });
  }
  if (world_size() == 1) {
    for (const auto& [name, count] : parts) CHECK(count == 1);
  }
  for (const ShardedTensor& part : store.sharded_gradients()) {
    CHECK(ops->squared_norm(part.local) == 0);
  }
}

TEST_CASE("masters that a checkpoint brings reach every rank's weights") {
  const auto ops = make_cpu_ops({});
  const Groups groups = Groups::over_mpi(Topology({}, world_size()));
  Model model(tiny_moe(4, 2), groups, *ops, DType::bf16, {}, {.optimizer = true, .bucket_bytes = 700});
  ParameterStore& store = model.parameters();
  for (const ShardedTensor& part : store.sharded_masters()) {
    for_each_run(part, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i)
        part.local.as<float>()[local + i] = static_cast<float>((global + i) % 251);
    });
  }
  model.weights_changed();
  for (std::size_t i = 0; i < store.specs().size(); ++i) {
    const FlatRange range = store.range(i);
    const Tensor weights = store.weights(range.group).rows(range.first, range.last - range.first);
    std::vector<float> values(static_cast<std::size_t>(weights.elements()));
    ops->convert(weights, Tensor(values.data(), weights.shape));
    std::int64_t wrong = 0;
    for (std::size_t e = 0; e < values.size(); ++e) wrong += values[e] != static_cast<float>(e % 251);
    CAPTURE(store.specs()[i].name);
    CHECK(wrong == 0);
  }
}
