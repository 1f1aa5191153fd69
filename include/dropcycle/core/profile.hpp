// Where a run's time goes: nested spans with names, summed into a table and kept as a trace for Perfetto or
// chrome://tracing. While nobody profiles, a span costs one test of a thread's pointer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace dropcycle {

enum class SpanKind : std::uint8_t {
  step,           // a training step; the table is about these
  phase,          // forward, backward, optimizer, ...
  operation,      // of Ops
  communication,  // a collective that returns when it is done
  waiting,        // for a message or a collective that was started before
};

// Records the spans of the thread that made it, from birth on. One at a time in a thread.
class Profile {
 public:
  // Of the trace, the first `most_events` spans are kept; the table has those of all steps but the first `warm_up`,
  // which create kernels and touch memory (unless there are no others).
  explicit Profile(std::int64_t most_events = 400'000, std::int64_t warm_up = 1);
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;
  // The one of this thread, or null.
  static Profile* active();

  // `name` outlives the profile. Every begin has its end, innermost first.
  void begin(SpanKind kind, const char* name);
  void end();
  // The trace's zero: now. Ranks call it after a barrier, so that their traces stand beside one another.
  void set_zero();

  // Lines with the time of each phase, and in it of each operation, less what is nested in it: milliseconds a step,
  // share of the step, calls a step; then the sums of operations, communication and waiting, and what is none of them.
  // Mean over the steps.
  std::string table() const;
  // Seconds of the steps that the table is about, and those of the phases in them.
  double step_seconds() const;
  double phase_seconds() const;
  // The spans as elements of a Chrome trace (without brackets), process `rank`.
  std::string trace_events(int rank) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A whole trace of the ranks' events.
std::string trace_json(std::span<const std::string> events_of_ranks);

// A span of the thread's active profile, for the life of the object.
class Span {
 public:
  Span(SpanKind kind, const char* name) : profile_(Profile::active()) {
    if (profile_ != nullptr) profile_->begin(kind, name);
  }
  ~Span() {
    if (profile_ != nullptr) profile_->end();
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Profile* profile_;
};

}  // namespace dropcycle
