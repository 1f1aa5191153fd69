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
  return device.backend == "cpu" && has_native_bf16() ? DType::bf16 : DType::f32;
}

}  // namespace

Machine make_machine(const Config& config, const Runtime& runtime) {
  const ParallelConfig& p = config.parallel;
  const PipelineOptions pipeline = pipeline_options(config);
  Machine machine{runtime.groups(
      {.tp = p.tensor, .cp = p.context, .dp = p.data, .pp = p.pipeline, .etp = p.expert_tensor, .ep = p.expert})};
  machine.pipeline = pipeline;
  machine.compute = compute_dtype(config.device);
  machine.threads =
      config.device.threads > 0 ? config.device.threads : std::max(1, processors() / runtime.local_size());
  machine.ops = make_ops(config.device.backend, {.threads = machine.threads});
  return machine;
}

double measure_product_speed(Machine& machine) {
  if (machine.ops->name() == "reference") return 0;
  constexpr std::int64_t rows = 1024, inputs = 512, outputs = 1024;
  const OwnedTensor x(machine.compute, {rows, inputs}), w(machine.compute, {outputs, inputs}),
      y(machine.compute, {rows, outputs});
  double best = 0;
  for (int run = 0; run < 6; ++run) {  // the first ones create and pack
    machine.groups.world().barrier();
    const auto start = std::chrono::steady_clock::now();
    machine.ops->linear(x, {w, 1}, y);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * rows * inputs * outputs / seconds);
  }
  machine.groups.world().sum({&best, 1});
  return best;
}

}  // namespace dropcycle
