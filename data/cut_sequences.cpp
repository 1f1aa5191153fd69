#include "dropcycle/core/error.hpp"
#include "dropcycle/data/dataset.hpp"

namespace dropcycle {

Batch cut_sequences(const Batch& batch, std::int64_t sequence, int rank, int ranks) {
  if (ranks == 1) return batch;
  require(sequence % (2 * ranks) == 0 && rank >= 0 && rank < ranks, "sequences of {} cut for rank {} of {}", sequence,
          rank, ranks);
  const std::int64_t part = sequence / (2 * ranks);
  const auto length = static_cast<std::int64_t>(batch.tokens.size());
  Batch mine{.first_sample = batch.first_sample};
  for (std::int64_t begin = 0; begin < length; begin += sequence) {
    for (const std::int64_t number : {rank, 2 * ranks - 1 - rank}) {
      const std::int64_t first = begin + number * part;
      const auto take = [&](const std::vector<std::int32_t>& from, std::vector<std::int32_t>& to) {
        to.insert(to.end(), from.begin() + first, from.begin() + first + part);
      };
      take(batch.tokens, mine.tokens);
      take(batch.targets, mine.targets);
      take(batch.positions, mine.positions);
      take(batch.first_key, mine.first_key);
      for (std::int64_t i = 0; i < part; ++i) {
        mine.places.push_back(static_cast<std::int32_t>(number * part + i));
      }
    }
  }
  return mine;
}

}  // namespace dropcycle
