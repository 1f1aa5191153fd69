#include <atomic>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/profile.hpp"
#include "dropcycle/ops/backends.hpp"
#include "profiled_ops.hpp"

namespace dropcycle {

std::uint64_t next_weight_version() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

namespace {

std::unique_ptr<Ops> make_plain_ops(std::string_view backend, const OpsOptions& options) {
  if (backend == "reference") return make_reference_ops();
  if (backend == "cpu") return make_cpu_ops(options);
  if (backend == "cuda") return make_cuda_ops(options);
  fail(Status::usage, "device.backend: '{}' is unknown: expected cpu, cuda or reference", backend);
}

}  // namespace

std::unique_ptr<Ops> make_ops(std::string_view backend, const OpsOptions& options) {
  auto ops = make_plain_ops(backend, options);
  return Profile::active() != nullptr ? make_profiled_ops(std::move(ops)) : std::move(ops);
}

}  // namespace dropcycle
