// Whole training steps of the trainer (forward, backward, clipping, AdamW) on random tokens, on one process or under
// mpirun.
//   bench_train_step tiny|small|152m EXPERTS [KEY=VALUE...]     0 experts: dense, else 2 of them per token
//   echo 5 | bench_train_step tiny 8 device.threads=1
// Prints a line of JSON with the model's sizes after three steps for warming up; then, for each number read from
// standard input, runs so many steps and prints their seconds, the last loss, the most memory that all ranks held
// during them, and the rows of the fullest rank's experts over those of an even router, mean over the last step's
// layers: with expert parallelism the others wait for that rank. The word "profile" among the settings: at the end, a
// table of where their time went on standard error.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "dropcycle/core/profile.hpp"
#include "dropcycle/model/cost.hpp"
#include "dropcycle/train/machine.hpp"
#include "dropcycle/train/training_step.hpp"
#include "memory_peak.hpp"
#include "shapes.hpp"

using namespace dropcycle;

namespace {

Config config_of(const std::vector<std::string>& words) {
  if (words.size() < 2) fail(Status::usage, "usage: bench_train_step tiny|small|152m EXPERTS [KEY=VALUE...]");
  const bench::Shapes shapes = bench::shapes_of(words[0], std::stoll(words[1]));
  std::vector<std::string> overrides{fmt::format("train.global_batch={}", shapes.batch),
                                     fmt::format("train.micro_batch={}", shapes.batch),
                                     fmt::format("data.sequence_length={}", shapes.sequence),
                                     "train.steps=1000000",
                                     "optimizer.schedule=constant",
                                     "optimizer.learning_rate=1e-4"};
  overrides.insert(overrides.end(), words.begin() + 2, words.end());
  Config config = parse_config(overrides);
  config.model = shapes.config;
  resolve(config);
  return config;
}

Batch random_batch(const Config& config, std::uint64_t index) {
  const RandomStream stream(config.train.seed, Purpose::test, "batch");
  const std::int64_t sequence = config.data.sequence_length, count = config.train.micro_batch * sequence;
  Batch batch;
  batch.first_sample = index * static_cast<std::uint64_t>(config.train.micro_batch);
  for (std::int64_t t = 0; t < count; ++t) {
    const std::uint64_t at = 2 * (index * static_cast<std::uint64_t>(count) + static_cast<std::uint64_t>(t));
    const auto vocabulary = static_cast<std::uint32_t>(config.model.vocab_size);
    batch.tokens.push_back(static_cast<std::int32_t>(stream.bits(at) % vocabulary));
    batch.targets.push_back(static_cast<std::int32_t>(stream.bits(at + 1) % vocabulary));
    batch.positions.push_back(static_cast<std::int32_t>(t % sequence));
    batch.first_key.push_back(0);
  }
  return batch;
}

class Trainer {
 public:
  Trainer(const Config& config, const Runtime& runtime)
      : config_(config),
        machine_(make_machine(config, runtime)),
        model_(config.model, machine_.groups, *machine_.ops, machine_.compute, machine_.pipeline,
               {.optimizer = config.parallel.shard_optimizer, .bucket_bytes = config.parallel.bucket_bytes}),
        optimizer_(model_, machine_.groups, config.optimizer),
        step_(model_, optimizer_, machine_.groups, config) {
    for (const ShardedTensor& part : model_.parameters().sharded_masters()) {
      const bool norm = part.name.find("norm") != std::string::npos;
      RandomStream(1, Purpose::weight, part.name).fill_normal(part.local, 0, norm ? 1.0 : 0.0, norm ? 0.0 : 0.02);
    }
    model_.weights_changed();
    const int rank = machine_.groups[GroupKind::dp].rank(), ranks = machine_.groups[GroupKind::dp].size();
    const std::int64_t count = config.train.global_batch / config.train.micro_batch / ranks;
    for (std::int64_t m = 0; m < count; ++m) {
      batches_.push_back(random_batch(config, static_cast<std::uint64_t>(rank * count + m)));
    }
  }

  // Seconds of each of `count` steps, and the last one's loss.
  std::vector<double> run(std::int64_t count) {
    std::vector<double> seconds;
    for (std::int64_t i = 0; i < count; ++i) {
      machine_.groups.world().barrier();
      const auto start = std::chrono::steady_clock::now();
      const Span span(SpanKind::step, "step");
      last_ = step_.run(++done_, batches_, [](std::uint64_t) { return std::string(); });
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return seconds;
  }

  // The next number of standard input on all ranks; 0 at its end.
  std::int64_t next_count() {
    double count = 0;
    if (machine_.groups.world().rank() == 0 && !(std::cin >> count)) count = 0;
    machine_.groups.world().sum({&count, 1});
    return static_cast<std::int64_t>(count);
  }

  double peak_bytes() {
    auto bytes = static_cast<double>(bench::peak_memory_bytes());
    machine_.groups.world().sum({&bytes, 1});
    return bytes;
  }

  // Of the last step, on all ranks.
  double fullest_rank() {
    const auto ranks = static_cast<std::size_t>(machine_.groups[GroupKind::ep].size());
    double sum = 0;
    for (const std::vector<double>& shares : last_.expert_load) {
      const std::size_t experts = shares.size() / ranks;
      double most = 0;
      for (std::size_t e = 0; e < shares.size(); e += experts) {
        most = std::max(most, std::reduce(&shares[e], &shares[e] + experts));
      }
      sum += most * static_cast<double>(ranks);
    }
    return last_.expert_load.empty() ? 1 : sum / static_cast<double>(last_.expert_load.size());
  }

  double loss() const { return last_.loss; }
  const Machine& machine() const { return machine_; }

 private:
  const Config& config_;
  Machine machine_;
  Model model_;
  AdamW optimizer_;
  TrainingStep step_;
  std::vector<Batch> batches_;
  std::int64_t done_ = 0;
  StepResult last_;
};

constexpr std::int64_t kWarmUp = 3;  // steps

void serve(const Config& config, const Runtime& runtime) {
  Trainer trainer(config, runtime);
  trainer.run(kWarmUp);
  const ModelConfig& c = config.model;
  const auto print = [&](const std::string& line) {
    if (runtime.rank() == 0) fmt::print("{{{}}}\n", line), std::fflush(stdout);
  };
  print(
      fmt::format("\"hidden\": {}, \"intermediate\": {}, \"layers\": {}, \"heads\": {}, \"vocabulary\": {}, "
                  "\"experts\": {}, \"batch\": {}, \"sequence\": {}, \"threads\": {}, \"ranks\": {}, "
                  "\"compute\": \"{}\", \"flops_per_token\": {}",
                  c.hidden_size, c.intermediate_size, c.layers, c.heads, c.vocab_size, c.experts,
                  config.train.global_batch, config.data.sequence_length, trainer.machine().threads, runtime.size(),
                  name(trainer.machine().compute), training_flops_per_token(c, config.data.sequence_length)));
  while (const std::int64_t count = trainer.next_count()) {
    bench::forget_peak_memory();
    const auto seconds = trainer.run(count);
    print(fmt::format("\"seconds\": [{:.6f}], \"loss\": {:.6f}, \"peak_bytes\": {:.0f}, \"fullest_rank\": {:.3f}",
                      fmt::join(seconds, ", "), trainer.loss(), trainer.peak_bytes(), trainer.fullest_rank()));
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    const Runtime runtime(&count, &arguments);
    std::vector<std::string> words(arguments + 1, arguments + count);
    const auto profile = std::erase(words, "profile") > 0 ? std::make_unique<Profile>(0, kWarmUp) : nullptr;
    serve(config_of(words), runtime);
    if (profile && runtime.rank() == 0) fmt::print(stderr, "{}\n", profile->table());
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_train_step: {}\n", error.what());
    return 1;
  }
}
