// Whole training steps (forward, backward, clipping, AdamW) on random tokens: tokens/s and GFLOP/s of the products,
// by the median step after three for warming up.
//   bench_train_step tiny|small|large dense|moe [bf16|f32] [steps] [threads]
// The shapes are those that are compared with other trainers; with DROPCYCLE_PROFILE=1 each operation is timed.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "../layers/tiny_model.hpp"
#include "dropcycle/model/cost.hpp"
#include "dropcycle/ops/ops.hpp"
#include "dropcycle/optim/adamw.hpp"

using namespace dropcycle;

namespace {

struct Shapes {
  ModelConfig config;
  std::int64_t batch, sequence;
};

Shapes shapes_of(const std::string& size, bool moe) {
  ModelConfig c{.vocab_size = size == "large" ? 99584 : 16384,
                .hidden_size = size == "tiny" ? 256 : 512,
                .intermediate_size = size == "tiny" ? 1024 : 2048,
                .layers = size == "tiny" ? 6 : 12,
                .heads = size == "tiny" ? 4 : 8,
                .kv_heads = size == "tiny" ? 4 : 8,
                .head_size = 64,
                .experts = moe ? 8 : 0,
                .rope_theta = 10000};
  if (moe) c.experts_per_token = 2;
  return {c, size == "tiny" ? 8 : 4, size == "tiny" ? 512 : 1024};
}

double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  const auto argument = [&](int i, const char* otherwise) { return std::string(i < count ? arguments[i] : otherwise); };
  const auto [config, batch_size, sequence] = shapes_of(argument(1, "tiny"), argument(2, "dense") == "moe");
  const int steps = std::atoi(argument(4, "5").c_str());
  const auto ops = make_ops("cpu", {.threads = std::atoi(argument(5, "0").c_str())});
  const Groups groups = Groups::single();
  Model model(config, groups, *ops, parse_dtype(argument(3, "bf16")));
  for (const ShardedTensor& part : model.parameters().sharded_masters()) {
    const bool norm = part.name.find("norm") != std::string::npos;
    RandomStream(1, Purpose::weight, part.name).fill_normal(part.local, 0, norm ? 1.0 : 0.0, norm ? 0.0 : 0.02);
  }
  model.weights_changed();
  AdamW optimizer(model, groups, OptimizerConfig{});
  test::TinyBatch data(config, batch_size, sequence);
  const MicrobatchTraining training{.token_scale = 1.0 / static_cast<double>(batch_size * sequence),
                                    .router = {.balance = 0.02}};
  constexpr int kWarmUp = 3;
  std::vector<double> walls, processors;
  double loss = 0;
  for (int step = 1; step <= kWarmUp + steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    const double processor_start = processor_seconds();
    for (const GradientGroup group : kGradientGroups) {
      const Tensor gradients = model.parameters().gradients(group);
      if (gradients.elements() > 0) ops->fill_zero(gradients);
    }
    const auto losses = model.forward_backward(data.batch, training);
    optimizer.update(step, 1e-4, optimizer.clip_factor(optimizer.gradient_norm()));
    if (step > kWarmUp) {
      walls.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      processors.push_back(processor_seconds() - processor_start);
    }
    loss = losses.language / static_cast<double>(losses.tokens);
  }
  const auto tokens = static_cast<double>(batch_size * sequence);
  const double wall = median(walls);
  const double gflop = 1e-9 * training_flops_per_token(config, sequence) * tokens;
  fmt::print("{} {}: {:.0f} tokens/s, {:.0f} GFLOP/s, {:.1f} ms a step ({:.1f} ms of processor), loss {:.4f}\n",
             argument(1, "tiny"), argument(2, "dense"), tokens / wall, gflop / wall, 1e3 * wall,
             1e3 * median(processors), loss);
}
