#include "dropcycle/train/machine.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "dropcycle/device/arena.hpp"

namespace dropcycle {
namespace {

int processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

DType compute_dtype(const DeviceConfig& device) {
  if (device.compute_dtype != "auto") return parse_dtype(device.compute_dtype);
  const bool native = device.backend == "cuda" || (device.backend == "cpu" && has_native_bf16());
  return native ? DType::bf16 : DType::f32;
}

}  // namespace

Machine make_machine(const Config& config, const Runtime& runtime) {
  const ParallelConfig& p = config.parallel;
  const PipelineOptions pipeline = pipeline_options(config);
  const int threads =
      config.device.threads > 0 ? config.device.threads : std::max(1, processors() / runtime.local_size());
  std::unique_ptr<Ops> ops = make_ops(config.device.backend, {.threads = threads,
                                                              .local_rank = runtime.local_rank(),
                                                              .graphs = config.device.cuda_graphs,
                                                              .deterministic = config.device.deterministic});
  Machine machine{runtime.groups(
      {.tp = p.tensor, .cp = p.context, .dp = p.data, .pp = p.pipeline, .etp = p.expert_tensor, .ep = p.expert},
      ops->device())};
  machine.ops = std::move(ops);
  machine.pipeline = pipeline;
  machine.compute = compute_dtype(config.device);
  machine.threads = threads;
  return machine;
}

double measure_product_speed(Machine& machine) {
  if (machine.ops->name() == "reference") return 0;
  constexpr std::int64_t rows = 1024, inputs = 512, outputs = 1024;
  Device& device = machine.ops->device();
  const OwnedTensor x(machine.compute, {rows, inputs}, device), w(machine.compute, {outputs, inputs}, device),
      y(machine.compute, {rows, outputs}, device);
  constexpr double kSeconds = 0.05;
  constexpr int kLeastRuns = 4;  // the first ones create and pack
  const auto seconds_since = [](auto start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  machine.groups.world().barrier();
  const auto begin = std::chrono::steady_clock::now();
  double best = 0;
  for (int run = 0; run < kLeastRuns || seconds_since(begin) < kSeconds; ++run) {
    const auto start = std::chrono::steady_clock::now();
    machine.ops->linear(x, {w, 1}, y);
    device.synchronize();
    best = std::max(best, 2.0 * rows * inputs * outputs / seconds_since(start));
  }
  machine.groups.world().sum({&best, 1});
  return best;
}

}  // namespace dropcycle
