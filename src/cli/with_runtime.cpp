#include "with_runtime.hpp"

#include <exception>
#include <new>

#include "dropcycle/core/log.hpp"
#include "verbs.hpp"

namespace dropcycle {

void with_runtime(const std::function<Status(const Runtime&)>& body) {
  const Runtime runtime(nullptr, nullptr);
  set_log(runtime.rank() == 0 ? LogLevel::info : LogLevel::warning, runtime.rank() == 0 ? "" : runtime.prefix());
  if (runtime.size() == 1) {
    verb_status() = body(runtime);
    return;
  }
  try {
    verb_status() = body(runtime);
  } catch (const Error& error) {
    runtime.abort(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    runtime.abort(Status::internal, "out of memory: choose a smaller model, micro_batch or sequence_length");
  } catch (const std::exception& error) {
    runtime.abort(Status::internal, error.what());
  }
}

}  // namespace dropcycle
