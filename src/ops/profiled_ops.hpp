// A span of the active profile (core/profile.hpp) around every operation of another backend. make_ops() puts it around
// the backend that it gives while a profile is active.
#pragma once

#include <memory>

#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

std::unique_ptr<Ops> make_profiled_ops(std::unique_ptr<Ops> inner);

}  // namespace dropcycle
