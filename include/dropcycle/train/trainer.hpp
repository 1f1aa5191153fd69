// A training run: initialisation or resume, the step loop, evaluation, checkpoints, metrics.
#pragma once

#include <string>

#include "dropcycle/core/config.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/parallel/runtime.hpp"

namespace dropcycle {

enum class Resume {
  never,      // the run folder must be empty
  automatic,  // from the newest whole checkpoint of the run folder, afresh if it is empty
};

// Runs the configuration (resolved) to its last step. Returns Status::ok, or Status::requeue after a stop signal with
// everything committed. Throws Error.
// `profile`: where each step's time goes, as a table on rank 0 at the end and as trace.json in the run folder, with all
// ranks, for Perfetto or chrome://tracing.
Status train(const Config& config, const Runtime& runtime, Resume resume, bool profile = false);

}  // namespace dropcycle
