// Operations that are the same on every backend whose memory is the host's.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "dropcycle/core/random.hpp"
#include "dropcycle/core/tensor.hpp"
#include "dropcycle/core/threads.hpp"

namespace dropcycle {

inline void fill_normal_on_host(const RandomStream& stream, std::uint64_t first, double mean, double standard_deviation,
                                const Tensor& out) {
  const Tensor flat = out.reshaped({out.elements()});
  in_parallel(out.elements(), 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    stream.fill_normal(flat.rows(begin, end - begin), first + static_cast<std::uint64_t>(begin), mean,
                       standard_deviation);
  });
}

// A counting sort.
inline void sort_rows_on_host(const Tensor& experts, const Tensor& counts, const Tensor& token_of_row,
                              const Tensor& slots) {
  const std::int64_t chosen = experts.shape[1];
  const auto* ids = experts.as<std::int32_t>();
  auto *count = counts.as<std::int32_t>(), *tokens = token_of_row.as<std::int32_t>();
  auto* rows = slots.as<std::int32_t>();
  std::fill_n(count, counts.elements(), 0);
  for (std::int64_t i = 0; i < experts.elements(); ++i) {
    require(ids[i] >= 0 && ids[i] < counts.elements(), "expert {} of {}", ids[i], counts.elements());
    ++count[ids[i]];
  }
  std::vector<std::int32_t> next(static_cast<std::size_t>(counts.elements()));
  std::exclusive_scan(count, count + counts.elements(), next.begin(), 0);
  for (std::int64_t i = 0; i < experts.elements(); ++i) {
    const std::int32_t row = next[static_cast<std::size_t>(ids[i])]++;
    tokens[row] = static_cast<std::int32_t>(i / chosen);
    rows[i] = row;
  }
}

}  // namespace dropcycle
