// Verbs that may run under mpirun.
#pragma once

#include <functional>

#include "dropcycle/core/error.hpp"
#include "dropcycle/parallel/runtime.hpp"

namespace dropcycle {

// Runs `body` with MPI where a launcher started it; only rank 0 logs below warnings. An exception on any rank ends all
// ranks with its status and one line. The status of `body` becomes verb_status().
void with_runtime(const std::function<Status(const Runtime&)>& body);

}  // namespace dropcycle
