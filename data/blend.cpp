#include "dropcycle/data/blend.hpp"

#include <cmath>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/random.hpp"

namespace dropcycle {
namespace {

__extension__ using Wide = unsigned __int128;
constexpr unsigned kFractionBits = 62;

}  // namespace

Blend::Blend(std::span<const double> weights, std::uint64_t seed) {
  const RandomStream random(seed, Purpose::blend, "offsets");
  std::vector<double> rest(weights.size() + 1, 0.0);  // p_k + p_{k+1} + ...
  for (std::size_t k = weights.size(); k-- > 0;) {
    if (!(weights[k] >= 0) || !std::isfinite(weights[k])) {
      fail(Status::usage, "weight {} of source {} of data.train: expected a finite number >= 0", weights[k], k);
    }
    rest[k] = rest[k + 1] + weights[k];
  }
  if (!(rest[0] > 0) || !std::isfinite(rest[0])) {
    fail(Status::usage, "the weights of data.train sum to {}: expected at least one above 0", rest[0]);
  }
  for (std::size_t k = 0; k < weights.size(); ++k) {
    const double share = rest[k] > 0 ? weights[k] / rest[k] : 0;
    lines_.push_back(
        {static_cast<std::uint64_t>(std::ldexp(share, kFractionBits)), random.bits64(k) >> (64 - kFractionBits)});
  }
}

std::uint64_t Blend::Line::taken(std::uint64_t j) const {
  return static_cast<std::uint64_t>((static_cast<Wide>(j) * slope + offset) >> kFractionBits);
}

Blend::Pick Blend::at(std::uint64_t sample) const {
  for (std::size_t k = 0; k + 1 < lines_.size(); ++k) {
    const std::uint64_t taken = lines_[k].taken(sample);
    if (lines_[k].taken(sample + 1) > taken) return {k, taken};
    sample -= taken;
  }
  return {lines_.size() - 1, sample};
}

std::vector<std::uint64_t> Blend::counts(std::uint64_t samples) const {
  std::vector<std::uint64_t> counts;
  for (std::size_t k = 0; k + 1 < lines_.size(); ++k) {
    counts.push_back(lines_[k].taken(samples));
    samples -= counts.back();
  }
  counts.push_back(samples);
  return counts;
}

}  // namespace dropcycle
