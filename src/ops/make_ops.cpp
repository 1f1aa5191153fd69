#include <atomic>
#include <cstdlib>

#include "dropcycle/core/error.hpp"
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
  fail(Status::usage, "device.backend: '{}' is unknown: expected cpu or reference", backend);
}

}  // namespace

std::unique_ptr<Ops> make_ops(std::string_view backend, const OpsOptions& options) {
  auto ops = make_plain_ops(backend, options);
  const char* profile = std::getenv("DROPCYCLE_PROFILE");
  if (profile != nullptr && std::string_view(profile) == "1") return make_profiled_ops(std::move(ops));
  return ops;
}

}  // namespace dropcycle
