#include "dropcycle/train/validation.hpp"

#include <algorithm>
#include <functional>
#include <span>

#include "dropcycle/train/training_step.hpp"

namespace dropcycle {
namespace {

// Room for `count` sequences of S tokens; rows that aren't filled predict nothing.
Batch blank_batch(std::int64_t count, std::int64_t sequence) {
  const auto size = static_cast<std::size_t>(count * sequence);
  return {.first_sample = 0,
          .tokens = std::vector<std::int32_t>(size),
          .targets = std::vector<std::int32_t>(size, -1),
          .positions = std::vector<std::int32_t>(size),
          .first_key = std::vector<std::int32_t>(size)};
}

Sample sample_of(Batch& batch, std::int64_t index, std::int64_t sequence) {
  const auto first = static_cast<std::size_t>(index * sequence), size = static_cast<std::size_t>(sequence);
  return {.tokens = std::span(batch.tokens).subspan(first, size),
          .targets = std::span(batch.targets).subspan(first, size),
          .positions = std::span(batch.positions).subspan(first, size),
          .first_key = std::span(batch.first_key).subspan(first, size)};
}

}  // namespace

Validation::Validation(const Config& config, const Groups& groups, const std::string& tokenizer_digest)
    : config_(config), groups_(groups) {
  for (const SourceConfig& source : config.data.valid) {
    sets_.emplace_back(source, config.data, config.model.vocab_size, tokenizer_digest);
  }
}

EvalMetrics Validation::run(Model& model, std::size_t source, std::int64_t step, RoutingStatistics* routing) {
  const ValidationSet& set = sets_[source];
  const std::int64_t count = config_.train.micro_batch, sequence = config_.data.sequence_length;
  const Communicator &data_ranks = groups_[GroupKind::dp], &context_ranks = groups_[GroupKind::cp];
  auto windows = static_cast<std::int64_t>(set.windows());
  if (config_.train.eval_batches > 0) windows = std::min(windows, config_.train.eval_batches);
  double sums[2] = {};  // loss, tokens
  // Every rank runs as many microbatches as any other: expert parallelism needs all of them.
  for (std::int64_t first = 0; first < windows; first += count * data_ranks.size()) {
    Batch batch = blank_batch(count, sequence);
    const std::int64_t own = first + data_ranks.rank() * count;
    for (std::int64_t i = 0; i < count && own + i < windows; ++i) {
      set.read(static_cast<std::uint64_t>(own + i), sample_of(batch, i, sequence));
    }
    batch = cut_sequences(batch, sequence, context_ranks.rank(), context_ranks.size());
    const MicrobatchLosses losses = model.evaluate(view(batch, count, sequence, config_.data.reset_at_document_end));
    sums[0] += losses.language;
    sums[1] += static_cast<double>(losses.tokens);
    if (routing == nullptr) continue;
    std::ranges::transform(losses.routing.counts, routing->counts, routing->counts.begin(), std::plus<>());
  }
  groups_[GroupKind::dense_gradient].sum(sums);
  groups_[GroupKind::pp].sum(std::span(sums, 1));  // the last stage knows the loss, every stage the tokens
  return {.step = step, .source = set.name(), .loss = sums[0] / sums[1], .tokens = static_cast<std::int64_t>(sums[1])};
}

}  // namespace dropcycle
