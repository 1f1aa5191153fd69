// What a run's steps sent, beside the formula's.
#pragma once

#include <string>
#include <vector>

#include "dropcycle/model/communication.hpp"

namespace dropcycle {

// Lines of a table: group, its ranks, collective, bytes a step counted and by formula. `counted`: of `steps` steps.
// Empty where nothing was sent. The formula's all_to_all, and what experts' tensor ranks exchange, suppose that every
// rank gets equally many rows.
std::vector<std::string> traffic_table(const Groups& groups, const GroupTraffic& counted, std::int64_t steps,
                                       const GroupTraffic& formula);

}  // namespace dropcycle
