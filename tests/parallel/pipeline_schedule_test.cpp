// Every pipeline schedule up to 8 stages, 16 microbatches and 4 chunks, played without MPI: it ends, every forward and
// backward is done once and after what it needs, messages arrive in the order in which they are awaited, and no more
// microbatches are alive than promised. Messages are received when a step asks for them and not earlier.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dropcycle/core/error.hpp"
#include "dropcycle/parallel/pipeline_schedule.hpp"

using namespace dropcycle;

namespace {

constexpr PipelineSchedule kSchedules[] = {PipelineSchedule::gpipe, PipelineSchedule::one_forward_one_backward,
                                           PipelineSchedule::interleaved};
using Steps = std::vector<PipelineStep>;

// A message between chunk `chunk` (numbered over all stages) and its neighbour.
struct Message {
  std::int64_t microbatch = 0;
  int chunk = 0;  // the receiver's
  double time = 0;
  bool operator==(const Message& other) const { return microbatch == other.microbatch && chunk == other.chunk; }
};

struct Outcome {
  bool finished = true;
  int out_of_order = 0;  // messages that were not the one awaited
  int out_of_place = 0;  // steps done twice or before what they need on their own stage
  std::vector<std::int64_t> most_alive;
  double time = 0;  // a forward of a chunk takes 1, a backward 2
};

class Player {
 public:
  Player(std::vector<Steps> stages, int chunks)
      : stages_(std::move(stages)),
        chunks_(chunks),
        next_(stages_.size()),
        clock_(stages_.size()),
        gradients_under_way_(stages_.size()),
        done_(stages_.size()) {}

  Outcome play() {
    Outcome outcome;
    outcome.most_alive.resize(stages_.size());
    std::vector<std::int64_t> alive(stages_.size());
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t s = 0; s < stages_.size(); ++s) {
        while (next_[s] < stages_[s].size() && advance(s, outcome)) {
          const bool forward = stages_[s][next_[s]++].kind == PipelineStep::Kind::forward;
          alive[s] += forward ? 1 : -1;
          outcome.most_alive[s] = std::max(outcome.most_alive[s], alive[s]);
          moved = true;
        }
      }
    }
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      outcome.finished = outcome.finished && next_[s] == stages_[s].size() && alive[s] == 0;
      outcome.time = std::max(outcome.time, clock_[s]);
    }
    for (const auto& [ends, channel] : channels_) outcome.finished = outcome.finished && channel.empty();
    return outcome;
  }

 private:
  int stages() const { return static_cast<int>(stages_.size()); }
  int stage_of(int chunk) const { return chunk % stages(); }

  // Plays the next step of stage s if its message is there and its gradient buffer free.
  bool advance(std::size_t s, Outcome& outcome) {
    const PipelineStep& step = stages_[s][next_[s]];
    const bool forward = step.kind == PipelineStep::Kind::forward;
    const int chunk = step.chunk * stages() + static_cast<int>(s), last = chunks_ * stages() - 1;
    const int from = forward ? chunk - 1 : chunk + 1, to = forward ? chunk + 1 : chunk - 1;
    const bool receives = from >= 0 && from <= last, sends = to >= 0 && to <= last;
    const auto key = [forward](int sender, int receiver) { return std::tuple(forward, sender, receiver); };
    if (!forward && sends && gradients_under_way_[s] >= kGradientBuffers) return false;
    double start = clock_[s];
    if (receives) {
      auto& channel = channels_[key(stage_of(from), static_cast<int>(s))];
      if (channel.empty()) return false;
      if (!(channel.front() == Message{step.microbatch, chunk, 0})) ++outcome.out_of_order;
      start = std::max(start, channel.front().time);
      channel.pop_front();
      if (!forward) --gradients_under_way_[static_cast<std::size_t>(stage_of(from))];
    }
    const bool once = done_[s].insert({forward, step.microbatch, step.chunk}).second;
    const bool in_place = forward || done_[s].contains({true, step.microbatch, step.chunk});
    if (!once || !in_place) ++outcome.out_of_place;
    clock_[s] = start + (forward ? 1 : 2);
    if (sends) {
      channels_[key(static_cast<int>(s), stage_of(to))].push_back({step.microbatch, to, clock_[s]});
      if (!forward) ++gradients_under_way_[s];
    }
    return true;
  }

  std::vector<Steps> stages_;
  int chunks_;
  std::vector<std::size_t> next_;
  std::vector<double> clock_;
  std::vector<int> gradients_under_way_;
  std::vector<std::set<std::tuple<bool, std::int64_t, int>>> done_;
  std::map<std::tuple<bool, int, int>, std::deque<Message>> channels_;
};

std::vector<Steps> all_stages(PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks) {
  std::vector<Steps> result;
  for (int s = 0; s < stages; ++s) result.push_back(pipeline_steps(schedule, stages, microbatches, chunks, s));
  return result;
}

template <class Function>
void for_every_schedule(Function f) {
  for (const PipelineSchedule schedule : kSchedules) {
    for (int stages = 1; stages <= 8; ++stages) {
      for (std::int64_t microbatches = 1; microbatches <= 16; ++microbatches) {
        for (int chunks = 1; chunks <= (schedule == PipelineSchedule::interleaved ? 4 : 1); ++chunks) {
          CAPTURE(name(schedule));
          CAPTURE(stages);
          CAPTURE(microbatches);
          CAPTURE(chunks);
          f(schedule, stages, microbatches, chunks);
        }
      }
    }
  }
}

std::string usage_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.status() == Status::usage);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("every schedule ends, does everything once and in order, and keeps its promise of memory") {
  for_every_schedule([](PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks) {
    const Outcome outcome = Player(all_stages(schedule, stages, microbatches, chunks), chunks).play();
    REQUIRE(outcome.finished);
    REQUIRE(outcome.out_of_order == 0);
    REQUIRE(outcome.out_of_place == 0);
    for (int s = 0; s < stages; ++s) {
      const Steps steps = pipeline_steps(schedule, stages, microbatches, chunks, s);
      REQUIRE(std::ssize(steps) == 2 * microbatches * chunks);
      const std::int64_t alive = outcome.most_alive[static_cast<std::size_t>(s)];
      const std::int64_t promised = most_alive(schedule, stages, microbatches, chunks, s);
      REQUIRE(alive <= promised);
      if (microbatches % stages == 0) REQUIRE(alive == promised);  // no more than what is needed
    }
  });
}

TEST_CASE("the promised memory is the formula's") {
  CHECK(most_alive(PipelineSchedule::gpipe, 4, 16, 1, 0) == 16);
  CHECK(most_alive(PipelineSchedule::one_forward_one_backward, 4, 16, 1, 0) == 4);
  CHECK(most_alive(PipelineSchedule::one_forward_one_backward, 4, 16, 1, 3) == 1);
  CHECK(most_alive(PipelineSchedule::one_forward_one_backward, 4, 3, 1, 0) == 3);
  CHECK(most_alive(PipelineSchedule::one_forward_one_backward, 1, 16, 1, 0) == 1);
  CHECK(most_alive(PipelineSchedule::interleaved, 4, 16, 2, 0) == 11);  // 2*3 + 4 + 1
  CHECK(most_alive(PipelineSchedule::interleaved, 4, 4, 2, 0) == 8);    // all there is
  CHECK(most_alive(PipelineSchedule::interleaved, 4, 16, 2, 3) == 5);
}

TEST_CASE("without pipeline every forward is followed by its backward") {
  const Steps steps = pipeline_steps(PipelineSchedule::one_forward_one_backward, 1, 3, 1, 0);
  using Kind = PipelineStep::Kind;
  CHECK(steps == Steps{{Kind::forward, 0, 0},
                       {Kind::backward, 0, 0},
                       {Kind::forward, 1, 0},
                       {Kind::backward, 1, 0},
                       {Kind::forward, 2, 0},
                       {Kind::backward, 2, 0}});
}

TEST_CASE("the time of a step is the papers'") {
  // Forward 1, backward 2 for a chunk: M*V*3 of work and (P-1)*3 of waiting, whatever V is.
  for_every_schedule([](PipelineSchedule schedule, int stages, std::int64_t microbatches, int chunks) {
    if (microbatches % stages != 0) return;
    const Outcome outcome = Player(all_stages(schedule, stages, microbatches, chunks), chunks).play();
    const double work = 3.0 * static_cast<double>(microbatches) * chunks;
    CHECK(outcome.time == work + 3.0 * (stages - 1));
  });
}

TEST_CASE("the player sees a wrong schedule") {
  using Kind = PipelineStep::Kind;
  const auto play = [](const std::vector<Steps>& stages) { return Player(stages, 1).play(); };
  const Steps right = {{Kind::forward, 0, 0}, {Kind::backward, 0, 0}};
  CHECK(play({right, right}).finished);
  CHECK_FALSE(play({{{Kind::backward, 0, 0}, {Kind::forward, 0, 0}}, right}).finished);  // each waits for the other
  CHECK_FALSE(play({right, {{Kind::forward, 0, 0}}}).finished);                          // a backward is missing
  const Steps two = {{Kind::forward, 0, 0}, {Kind::forward, 1, 0}, {Kind::backward, 0, 0}, {Kind::backward, 1, 0}};
  const Steps crossed = {{Kind::forward, 1, 0}, {Kind::forward, 0, 0}, {Kind::backward, 0, 0}, {Kind::backward, 1, 0}};
  CHECK(play({two, two}).out_of_order == 0);
  CHECK(play({two, crossed}).out_of_order == 2);
  CHECK(play({{{Kind::forward, 0, 0}, {Kind::forward, 0, 0}}}).out_of_place == 1);
}

TEST_CASE("layers are shared out evenly or as asked") {
  using Counts = std::vector<std::int64_t>;
  CHECK(layers_of_chunks(8, 2, 1) == Counts{4, 4});
  CHECK(layers_of_chunks(7, 2, 2) == Counts{2, 2, 2, 1});
  CHECK(layers_of_chunks(5, 1, 1) == Counts{5});
  CHECK(layers_of_chunks(7, 2, 1, {5, 2}) == Counts{5, 2});
  CHECK(usage_error([] { layers_of_chunks(3, 2, 2); }) ==
        "parallel.pipeline = 2 * virtual_stages 2 makes 4 chunks of model.layers = 3: every chunk needs a layer, so "
        "set pipeline to at most 1, or virtual_stages to at most 1");
  CHECK(usage_error([] {
          layers_of_chunks(7, 2, 1, {3, 3, 1});
        }) == "parallel.pipeline_layers has 3 entries, expected 2: pipeline 2 * virtual_stages 1");
  CHECK(usage_error([] {
          layers_of_chunks(7, 2, 1, {7, 0});
        }) ==
        "parallel.pipeline_layers sums to 7 with a least entry of 0, expected model.layers = 7 in entries of at least "
        "1");
}

TEST_CASE("names of schedules, and chunks that a schedule doesn't have") {
  for (const PipelineSchedule schedule : kSchedules) CHECK(parse_pipeline_schedule(name(schedule)) == schedule);
  CHECK(usage_error([] { parse_pipeline_schedule("zigzag"); }) ==
        "parallel.schedule = 'zigzag': expected gpipe, 1f1b or interleaved");
  CHECK(usage_error([] { pipeline_steps(PipelineSchedule::one_forward_one_backward, 2, 4, 2, 0); }) ==
        "parallel.virtual_stages = 2: schedule '1f1b' has one chunk a stage: set parallel.schedule = 'interleaved'");
}
