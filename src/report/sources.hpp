#pragma once

#include <span>
#include <string>
#include <vector>

#include "dropcycle/report/compare.hpp"

namespace dropcycle {

// The held-out sources of all runs, in the order of their configurations.
std::vector<std::string> sources_of(std::span<const RunRecord> runs);

}  // namespace dropcycle
