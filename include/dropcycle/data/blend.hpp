// Blending: which source sample i comes from, and how many samples of each source came before it, in closed form.
//
// Sources are peeled off one by one. Of the first j samples not taken by sources 0..k-1, source k takes
//   taken_k(j) = floor((j * a_k + c_k) / 2^62),   a_k = 2^62 * p_k / (p_k + p_{k+1} + ...),   0 <= c_k < 2^62,
// (Bresenham's line), so it takes sample j iff taken_k(j + 1) > taken_k(j), and the sources after it share the other
// j - taken_k(j). The count of every source before any sample is thus exact and costs one product per source; it is off
// from its share by less than 1 per peeled source. The offsets c_k come from the seed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace dropcycle {

class Blend {
 public:
  // `weights` >= 0, at least one above; they needn't sum to one. Throws Error{usage}.
  Blend(std::span<const double> weights, std::uint64_t seed);

  struct Pick {
    std::size_t source;
    std::uint64_t index;  // how many samples of that source came before
  };
  Pick at(std::uint64_t sample) const;
  // Samples of each source among the first `samples`; they sum to `samples`.
  std::vector<std::uint64_t> counts(std::uint64_t samples) const;

 private:
  struct Line {
    std::uint64_t slope, offset;
    std::uint64_t taken(std::uint64_t j) const;
  };
  std::vector<Line> lines_;  // the last source takes what is left
};

}  // namespace dropcycle
