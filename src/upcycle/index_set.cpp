#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/random.hpp"
#include "dropcycle/upcycle/upcycle.hpp"

namespace dropcycle {

std::string_view name(FfnMatrix matrix) {
  switch (matrix) {
    case FfnMatrix::gate:
      return "gate";
    case FfnMatrix::up:
      return "up";
    case FfnMatrix::down:
      return "down";
  }
  return "";
}

std::int64_t dropped_neurons(double ratio, std::int64_t neurons) {
  if (!(ratio >= 0 && ratio <= 1)) {
    fail(Status::usage, "the re-initialised share r is {}: expected a number from 0 (naive) to 1 (all)", ratio);
  }
  // The shortest decimal text that reads back as `ratio` is what was written; as digits * 10^-places.
  std::string shortest;
  for (int precision = 0; precision < 17; ++precision) {
    shortest = fmt::format("{:.{}e}", ratio, precision);
    if (std::stod(shortest) == ratio) break;
  }
  const std::size_t exponent_at = shortest.find('e');
  std::string digits = shortest.substr(0, exponent_at);
  int places = -std::stoi(shortest.substr(exponent_at + 1));
  if (const std::size_t point = digits.find('.'); point != std::string::npos) {
    places += static_cast<int>(digits.size() - point - 1);
    digits.erase(point, 1);
  }
  if (places > 36) return 0;  // less than one neuron of any matrix
  __extension__ using Wide = unsigned __int128;
  Wide scale = 1;
  for (int i = 0; i < places; ++i) scale *= 10;
  return static_cast<std::int64_t>(static_cast<Wide>(std::stoull(digits)) * static_cast<Wide>(neurons) / scale);
}

std::vector<std::int64_t> index_set(const InitConfig& init, std::int64_t neurons, std::int64_t layer,
                                    std::int64_t expert, FfnMatrix matrix) {
  const std::int64_t count = init.method == "naive" ? 0 : dropped_neurons(init.ratio, neurons);
  std::string stream_name = fmt::format("layers.{}.moe.experts.{}", layer, expert);
  if (init.index_sets == "per_matrix") stream_name += fmt::format(".{}", name(matrix));
  const RandomStream stream(init.seed, Purpose::index_set, stream_name);
  std::vector<std::int64_t> indices(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < indices.size(); ++i) {
    indices[i] = static_cast<std::int64_t>(permuted_index(stream, static_cast<std::uint64_t>(neurons), i));
  }
  std::ranges::sort(indices);
  return indices;
}

}  // namespace dropcycle
