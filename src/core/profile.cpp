#include "dropcycle/core/profile.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <map>
#include <string_view>
#include <vector>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

using Clock = std::chrono::steady_clock;

thread_local Profile* active_profile = nullptr;

constexpr std::array<const char*, 5> kKindNames{"step", "phase", "operation", "communication", "waiting"};

const char* name_of(SpanKind kind) { return kKindNames[static_cast<std::size_t>(kind)]; }

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

struct Sum {
  std::int64_t calls = 0;
  double own = 0, whole = 0;  // seconds without and with what is nested
};

struct Key {
  std::string_view phase, name;
  SpanKind kind = SpanKind::operation;
  auto operator<=>(const Key&) const = default;
};

}  // namespace

struct Profile::State {
  struct Open {
    SpanKind kind;
    const char* name;
    Clock::time_point start;
    std::string_view phase;
    double nested = 0;  // seconds of the spans in it
  };
  struct Event {
    SpanKind kind;
    const char* name;
    Clock::time_point start;
    Clock::duration time;
  };

  std::int64_t most_events = 0, warm_up = 1;
  Clock::time_point zero = Clock::now();
  std::vector<Open> open;
  std::vector<Event> events;
  std::map<Key, Sum> sums;
  std::int64_t steps = 0;
  bool in_step = false;

  void add(const Open& span, double time) {
    if (!in_step) return;
    Sum& sum = sums[{span.phase, span.name, span.kind}];
    ++sum.calls;
    sum.own += time - span.nested;
    sum.whole += time;
  }
  double total(SpanKind kind, double Sum::*part) const {
    double result = 0;
    for (const auto& [key, sum] : sums) result += key.kind == kind ? sum.*part : 0;
    return result;
  }
  // Steps that the sums are about.
  double counted() const {
    return static_cast<double>(std::max<std::int64_t>(1, steps > warm_up ? steps - warm_up : steps));
  }
};

Profile::Profile(std::int64_t most_events, std::int64_t warm_up) : state_(std::make_unique<State>()) {
  require(active_profile == nullptr, "a second profile in one thread");
  state_->most_events = most_events;
  state_->warm_up = warm_up;
  active_profile = this;
}

Profile::~Profile() { active_profile = nullptr; }

Profile* Profile::active() { return active_profile; }

void Profile::set_zero() { state_->zero = Clock::now(); }

void Profile::begin(SpanKind kind, const char* name) {
  State& s = *state_;
  if (kind == SpanKind::step) {
    if (s.steps == s.warm_up) s.sums.clear();
    s.in_step = true;
  }
  const std::string_view phase = kind == SpanKind::phase ? name : s.open.empty() ? "" : s.open.back().phase;
  s.open.push_back({kind, name, Clock::now(), phase});
}

void Profile::end() {
  State& s = *state_;
  const State::Open span = s.open.back();
  s.open.pop_back();
  const Clock::duration time = Clock::now() - span.start;
  if (!s.open.empty()) s.open.back().nested += seconds(time);
  s.add(span, seconds(time));
  if (std::ssize(s.events) < s.most_events) s.events.push_back({span.kind, span.name, span.start, time});
  if (span.kind != SpanKind::step) return;
  s.in_step = false;
  ++s.steps;
}

double Profile::step_seconds() const { return state_->total(SpanKind::step, &Sum::whole); }
double Profile::phase_seconds() const { return state_->total(SpanKind::phase, &Sum::whole); }

std::string Profile::table() const {
  const State& s = *state_;
  const double steps = s.counted(), all = step_seconds();
  std::string text = fmt::format("{:<32} {:>12} {:>8} {:>12}\n", "", "ms a step", "share", "calls a step");
  const auto line = [&](std::string_view indent, std::string_view label, double time, double calls) {
    text += fmt::format("{:<32} {:>12.3f} {:>7.1f}%", fmt::format("{}{}", indent, label), 1e3 * time / steps,
                        100 * time / all);
    text += calls > 0 ? fmt::format(" {:>12.4g}\n", calls / steps) : "\n";
  };
  std::vector<std::pair<Key, Sum>> phases;
  for (const auto& entry : s.sums) {
    if (entry.first.kind == SpanKind::phase) phases.push_back(entry);
  }
  const auto slower = [](const auto& a, const auto& b) { return a.second.own > b.second.own; };
  std::ranges::sort(phases, [](const auto& a, const auto& b) { return a.second.whole > b.second.whole; });
  line("", "step", all, 0);
  for (const auto& [phase, sum] : phases) {
    line("", phase.name, sum.whole, static_cast<double>(sum.calls));
    std::vector<std::pair<Key, Sum>> parts;
    std::ranges::copy_if(s.sums, std::back_inserter(parts), [&](const auto& entry) {
      return entry.first.phase == phase.name && entry.first.kind != SpanKind::phase;
    });
    std::ranges::sort(parts, slower);
    for (const auto& [key, part] : parts) line("  ", key.name, part.own, static_cast<double>(part.calls));
    if (!parts.empty()) line("  ", "(between them)", sum.own, 0);
  }
  for (const auto& [label, kind] :
       {std::pair{"all operations", SpanKind::operation}, std::pair{"all communication", SpanKind::communication},
        std::pair{"all waiting", SpanKind::waiting}}) {
    line("", label, s.total(kind, &Sum::own), 0);
  }
  line("", "none of them", s.total(SpanKind::step, &Sum::own) + s.total(SpanKind::phase, &Sum::own), 0);
  text.pop_back();
  return text;
}

std::string Profile::trace_events(int rank) const {
  std::string text =
      fmt::format(R"({{"name":"process_name","ph":"M","pid":{},"tid":0,"args":{{"name":"rank {}"}}}})", rank, rank);
  const auto microseconds = [](Clock::duration time) { return 1e6 * seconds(time); };
  for (const State::Event& event : state_->events) {
    text += fmt::format(
        ",\n"
        R"({{"name":"{}","cat":"{}","ph":"X","pid":{},"tid":0,"ts":{:.3f},"dur":{:.3f}}})",
        event.name, name_of(event.kind), rank, microseconds(event.start - state_->zero), microseconds(event.time));
  }
  return text;
}

std::string trace_json(std::span<const std::string> events_of_ranks) {
  return fmt::format("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", fmt::join(events_of_ranks, ",\n"));
}

}  // namespace dropcycle
