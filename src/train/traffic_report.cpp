#include "dropcycle/train/traffic_report.hpp"

#include <fmt/format.h>

namespace dropcycle {

std::vector<std::string> traffic_table(const Groups& groups, const GroupTraffic& counted, std::int64_t steps,
                                       const GroupTraffic& formula) {
  std::vector<std::string> lines;
  for (const GroupKind group : kGroupKinds) {
    for (const Collective kind : kCollectives) {
      const double bytes = counted[group][kind] / static_cast<double>(steps), expected = formula[group][kind];
      if (bytes == 0 && expected == 0) continue;
      lines.push_back(fmt::format("  {:<16} {:>5}  {:<14} {:>15.0f} {:>15.0f}", name(group), groups[group].size(),
                                  name(kind), bytes, expected));
    }
  }
  if (!lines.empty()) {
    lines.insert(lines.begin(), fmt::format("  {:<16} {:>5}  {:<14} {:>15} {:>15}", "group", "ranks", "collective",
                                            "counted bytes", "formula"));
  }
  return lines;
}

}  // namespace dropcycle
