// Rotary frequencies against the numbers of transformers 5.23 (modeling_rope_utils, float32).
#include <doctest/doctest.h>

#include <cmath>

#include "dropcycle/layers/attention.hpp"

using namespace dropcycle;

namespace {

void check(const ModelConfig& config, const std::vector<double>& expected) {
  const std::vector<double> frequencies = rope_inverse_frequencies(config);
  REQUIRE(frequencies.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK_FALSE(!(std::abs(frequencies[i] - expected[i]) <= 3e-7 * expected[i]));
  }
}

}  // namespace

TEST_CASE("unscaled and linear") {
  check({.head_size = 8, .rope_theta = 10000}, {1, 0.1, 0.01, 0.001});
  check({.head_size = 8, .rope_theta = 10000, .rope_scaling = "linear", .rope_factor = 4},
        {0.25, 0.0250000004, 0.00249999994, 0.000250000012});
}

TEST_CASE("llama3: short waves stay, long ones are slowed, those between are mixed") {
  check({.head_size = 32, .rope_theta = 500000, .rope_scaling = "llama3", .rope_factor = 8},
        {1.0, 0.440366626, 0.193922758, 0.0853971019, 0.0376060307, 0.0165604409, 0.00729266508, 0.00321144611,
         0.000524846022, 7.78465546e-05, 3.42810235e-05, 1.50962178e-05, 6.64786967e-06, 2.92749974e-06, 1.28917316e-06,
         5.6770881e-07});
  check(
      {.head_size = 16, .rope_theta = 100, .rope_scaling = "llama3", .rope_factor = 32, .rope_original_positions = 64},
      {1.0, 0.562341332, 0.236687109, 0.0521472245, 0.00372535503, 0.00175731652, 0.000988211832, 0.000555712322});
}
