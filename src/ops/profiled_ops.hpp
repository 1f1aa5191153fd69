// Times every operation of another backend. The environment variable DROPCYCLE_PROFILE=1 puts it around the backend
// that make_ops() gives; a table goes to standard error when the backend ends.
#pragma once

#include <memory>

#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

std::unique_ptr<Ops> make_profiled_ops(std::unique_ptr<Ops> inner);

}  // namespace dropcycle
