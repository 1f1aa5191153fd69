#include <algorithm>

#include "dropcycle/core/convert.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/random.hpp"
#include "dropcycle/core/threads.hpp"
#include "dropcycle/device/host_mirror.hpp"
#include "dropcycle/upcycle/upcycle.hpp"

namespace dropcycle {
namespace {

struct Distribution {
  bool uniform = false;
  double first = 0, second = 0;  // mean and standard deviation, or bounds
};

Distribution router_distribution(const std::string& name) {
  constexpr double kSqrt3 = 1.7320508075688772;
  if (name == "normal_002") return {false, 0, 0.02};
  if (name == "normal_02887") return {false, 0, 0.2887};
  if (name == "uniform_002") return {true, -0.02 * kSqrt3, 0.02 * kSqrt3};
  if (name == "uniform_05") return {true, -0.5, 0.5};
  if (name == "uniform_01") return {true, 0, 1};
  fail(Status::usage,
       "unknown router initialisation '{}': expected normal_002, normal_02887, uniform_002, uniform_05 or uniform_01",
       name);
}

// Elements [first, first + count) of the local part, which continue the global tensor from `global`.
void fill_run(const RandomStream& stream, const Distribution& distribution, const Tensor& local, std::int64_t first,
              std::int64_t global, std::int64_t count) {
  std::byte* place = static_cast<std::byte*>(local.data) + first * size_bytes(local.dtype);
  if (!distribution.uniform) {
    stream.fill_normal({place, local.dtype, {count}}, static_cast<std::uint64_t>(global), distribution.first,
                       distribution.second);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const double value = distribution.first + (distribution.second - distribution.first) *
                                                  stream.uniform(static_cast<std::uint64_t>(global + i));
    convert(&value, DType::f64, place + i * size_bytes(local.dtype), local.dtype, 1);
  }
}

Distribution distribution_of(const ParameterSpec& spec, const InitConfig& init, double init_std) {
  if (spec.initial == Initial::router) return router_distribution(init.router);
  if (spec.initial == Initial::ones) return {false, 1, 0};
  return {false, 0, init_std};
}

}  // namespace

void initialise_fresh(const ParameterSpec& spec, const InitConfig& init, double init_std, const ShardedTensor& out) {
  const RandomStream stream(init.seed, Purpose::weight, spec.name);
  const Distribution distribution = distribution_of(spec, init, init_std);
  for_each_run(out, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
    in_parallel(count, 1 << 14, [&](std::int64_t first, std::int64_t last) {
      fill_run(stream, distribution, out.local, local + first, global + first, last - first);
    });
  });
}

void initialise_fresh(const ParameterSpec& spec, const InitConfig& init, double init_std, const ShardedTensor& out,
                      Ops& ops) {
  const Distribution distribution = distribution_of(spec, init, init_std);
  if (distribution.uniform) {  // a router's, small
    HostMirror mirror(ops.device(), {out});
    initialise_fresh(spec, init, init_std, mirror.parts().front());
    return mirror.upload();
  }
  const RandomStream stream(init.seed, Purpose::weight, spec.name);
  const Tensor flat = out.local.reshaped({out.local.elements()});
  for_each_run(out, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
    ops.fill_normal(stream, static_cast<std::uint64_t>(global), distribution.first, distribution.second,
                    flat.rows(local, count));
  });
}

}  // namespace dropcycle
