// dropcycle bench: what this machine does with the operations of a model.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "dropcycle/core/progress.hpp"
#include "dropcycle/ops/benchmark.hpp"
#include "dropcycle/train/machine.hpp"
#include "verbs.hpp"
#include "with_runtime.hpp"

namespace dropcycle {
namespace {

void print(const OperationTime& time) {
  const bool product = time.flops > 0;
  const double work = product ? time.flops : time.reads + time.writes;
  fmt::print("{:<32} {:<32} {:>10.3f} {:>9.1f} {:>9.1f} {:<7} {:>6.0f}%\n", time.name, time.sizes, 1e3 * time.seconds,
             1e-9 * work / time.seconds, 1e-9 * work / time.limit_seconds, product ? "GFLOP/s" : "GB/s",
             100 * time.limit_seconds / time.seconds);
}

Status bench_ops(Config config, const Runtime& runtime) {
  if (runtime.size() > 1) fail(Status::usage, "bench ops runs on one process: start it without mpirun");
  config.train.global_batch = config.train.micro_batch;  // a step of one microbatch
  resolve(config);
  Machine machine = make_machine(config, runtime);
  Progress progress;
  std::vector<OperationTime> times;
  benchmark_ops(*machine.ops, machine.compute, config, machine.threads, [&](const OperationTime& time) {
    if (progress.due()) progress.show(fmt::format("measuring: {} of some 35 operations", times.size()));
    times.push_back(time);
  });
  progress.clear();
  fmt::print("{} on {} threads\n\n", name(machine.compute), machine.threads);
  fmt::print("{:<32} {:<32} {:>10} {:>9} {:>9} {:<7} {:>7}\n", "operation", "sizes", "ms", "rate", "limit", "",
             "share");
  for (const OperationTime& time : times) print(time);
  return Status::ok;
}

}  // namespace

void add_bench(CLI::App& app) {
  struct Options {
    std::string file;
    std::vector<std::string> overrides;
  };
  CLI::App* verb = app.add_subcommand("bench", "Measure this machine");
  verb->require_subcommand(1);
  auto options = std::make_shared<Options>();
  CLI::App* ops =
      verb->add_subcommand("ops", "Each tensor operation at the sizes of a configuration, beside its limit");
  ops->add_option("CONFIG", options->file, "A TOML file: its model, train.micro_batch and data.sequence_length")
      ->required();
  add_set_option(*ops, options->overrides);
  ops->footer(
      "\nThe limit of a product is the backend's best product; of everything else copying, reading or setting as many\n"
      "bytes, measured in turns with it. An operation whose operands stay in the caches may pass it.\n\nExamples:\n"
      "  dropcycle bench ops configs/experiment/moe_8x152m_drop.toml --set train.micro_batch=4\n"
      "  dropcycle bench ops configs/model/quickstart_moe.toml --set data.sequence_length=512 --set "
      "train.micro_batch=8");
  ops->callback([options] {
    with_runtime(
        [&](const Runtime& runtime) { return bench_ops(load_config(options->file, options->overrides), runtime); });
  });
}

}  // namespace dropcycle
