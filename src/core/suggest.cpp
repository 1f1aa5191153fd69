#include "dropcycle/core/suggest.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace dropcycle {

int edit_distance(std::string_view from, std::string_view to) {
  // Three rows of the table distance[i][j] between the first i characters of `from` and the first j of `to`.
  std::vector<int> before_last(to.size() + 1), last(to.size() + 1), row(to.size() + 1);
  for (std::size_t j = 0; j <= to.size(); ++j) row[j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= from.size(); ++i) {
    std::swap(before_last, last);
    std::swap(last, row);
    row[0] = static_cast<int>(i);
    for (std::size_t j = 1; j <= to.size(); ++j) {
      const int substitution = last[j - 1] + (from[i - 1] == to[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, substitution});
      const bool swapped = i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1];
      if (swapped) row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
  }
  return row[to.size()];
}

std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates) {
  int best = std::max(1, static_cast<int>(word.size()) / 3) + 1;
  std::vector<std::string> found;
  for (const std::string& candidate : candidates) {
    const int distance = edit_distance(word, candidate);
    if (distance < best) found.clear();
    if (distance < best || (distance == best && !found.empty())) {
      best = distance;
      found.push_back(candidate);
    }
  }
  return found;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates) {
  std::vector<std::string> found = nearest(word, candidates);
  if (found.empty()) return "";
  constexpr std::size_t kMost = 3;
  if (found.size() > kMost) found.resize(kMost);
  return fmt::format(": did you mean '{}'?", fmt::join(found, "' or '"));
}

}  // namespace dropcycle
