#include "dropcycle/parallel/pipeline_schedule.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

constexpr std::pair<PipelineSchedule, std::string_view> kNames[] = {
    {PipelineSchedule::gpipe, "gpipe"},
    {PipelineSchedule::one_forward_one_backward, "1f1b"},
    {PipelineSchedule::interleaved, "interleaved"}};

// (microbatch, chunk) in rounds of `round` microbatches (a divisor): a round goes through all chunks before the next
// one starts.
std::vector<std::pair<std::int64_t, int>> in_rounds(std::int64_t microbatches, int chunks, std::int64_t round,
                                                    bool last_chunk_first) {
  std::vector<std::pair<std::int64_t, int>> order;
  for (std::int64_t first = 0; first < microbatches; first += round) {
    for (int c = 0; c < chunks; ++c) {
      for (std::int64_t m = first; m < first + round; ++m) {
        order.emplace_back(m, last_chunk_first ? chunks - 1 - c : c);
      }
    }
  }
  return order;
}

// Forwards before the first backward.
std::int64_t warm_up(PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks, int stage) {
  const std::int64_t all = microbatches * chunks;
  switch (schedule) {
    case PipelineSchedule::gpipe:
      return all;
    case PipelineSchedule::one_forward_one_backward:
      return std::min<std::int64_t>(all, stages - 1 - stage);
    case PipelineSchedule::interleaved:
      return std::min<std::int64_t>(all, 2 * (stages - 1 - stage) + (chunks - 1) * stages);
  }
  return all;
}

void check(PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks, int stage) {
  require(stages >= 1 && stage >= 0 && stage < stages && microbatches >= 1 && chunks >= 1,
          "stage {} of {} with {} microbatches and {} chunks", stage, stages, microbatches, chunks);
  if (schedule != PipelineSchedule::interleaved && chunks > 1) {
    fail(Status::usage,
         "parallel.virtual_stages = {}: schedule '{}' has one chunk a stage: set parallel.schedule = 'interleaved'",
         chunks, name(schedule));
  }
}

}  // namespace

std::string_view name(PipelineSchedule schedule) {
  return std::ranges::find(kNames, schedule, &std::pair<PipelineSchedule, std::string_view>::first)->second;
}

PipelineSchedule parse_pipeline_schedule(std::string_view text) {
  for (const auto& [schedule, known] : kNames) {
    if (text == known) return schedule;
  }
  fail(Status::usage, "parallel.schedule = '{}': expected gpipe, 1f1b or interleaved", text);
}

std::vector<PipelineStep> pipeline_steps(PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks,
                                         int stage) {
  check(schedule, stages, microbatches, chunks, stage);
  const bool interleaved = schedule == PipelineSchedule::interleaved;
  const std::int64_t round = interleaved ? stages : microbatches;
  const std::int64_t padded = (microbatches + round - 1) / round * round;
  const auto forwards = in_rounds(padded, chunks, round, false), backwards = in_rounds(padded, chunks, round, true);
  const auto ahead = static_cast<std::size_t>(warm_up(schedule, stages, padded, chunks, stage));
  std::vector<PipelineStep> steps;
  std::size_t forward = 0;
  const auto add = [&](PipelineStep::Kind kind, const std::pair<std::int64_t, int>& what) {
    if (what.first < microbatches) steps.push_back({kind, what.first, what.second});
  };
  while (forward < ahead) add(PipelineStep::Kind::forward, forwards[forward++]);
  for (const auto& backward : backwards) {
    if (forward < forwards.size()) add(PipelineStep::Kind::forward, forwards[forward++]);
    add(PipelineStep::Kind::backward, backward);
  }
  return steps;
}

std::int64_t most_alive(PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks, int stage) {
  check(schedule, stages, microbatches, chunks, stage);
  return std::min(microbatches * chunks, warm_up(schedule, stages, microbatches, chunks, stage) + 1);
}

std::vector<std::int64_t> layers_of_chunks(std::int64_t layers, int stages, int chunks,
                                           const std::vector<std::int64_t>& given) {
  const std::int64_t parts = std::int64_t{stages} * chunks;
  if (parts > layers) {
    fail(Status::usage,
         "parallel.pipeline = {} * virtual_stages {} makes {} chunks of model.layers = {}: every chunk needs a layer, "
         "so set pipeline to at most {}, or virtual_stages to at most {}",
         stages, chunks, parts, layers, std::max<std::int64_t>(1, layers / chunks),
         std::max<std::int64_t>(1, layers / stages));
  }
  if (given.empty()) {
    std::vector<std::int64_t> result(static_cast<std::size_t>(parts), layers / parts);
    std::for_each_n(result.begin(), layers % parts, [](std::int64_t& count) { ++count; });
    return result;
  }
  if (std::ssize(given) != parts) {
    fail(Status::usage, "parallel.pipeline_layers has {} entries, expected {}: pipeline {} * virtual_stages {}",
         given.size(), parts, stages, chunks);
  }
  const std::int64_t sum = std::accumulate(given.begin(), given.end(), std::int64_t{0});
  if (sum != layers || std::ranges::min(given) < 1) {
    fail(Status::usage,
         "parallel.pipeline_layers sums to {} with a least entry of {}, expected model.layers = {} in "
         "entries of at least 1",
         sum, std::ranges::min(given), layers);
  }
  return given;
}

}  // namespace dropcycle
