// Streams as queues that run late and in random order.
#include <cuda_runtime_api.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "emulation.hpp"
#include "stand_in.hpp"

struct Work {
  std::string what;
  std::function<bool()> run;
};
// Work that was recorded instead of asked for, in the order of the calls.
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Work>> work;
};
struct CUstream_st {
  int number = 0;
  CUgraph_st* recording = nullptr;
  std::uint64_t priority = 0;
  std::deque<Work> work;
  bool destroyed = false;
};
// The n-th recording is reached once `reached` is n.
struct CUevent_st {
  struct State {
    int number = 0;
    std::int64_t recorded = 0, reached = 0;
    CUgraph_st* in_graph = nullptr;  // recorded on a stream that records
  };
  std::shared_ptr<State> state;
};

namespace stand_in {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{120};

struct Gpu {
  std::recursive_mutex mutex;
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::set<CUevent_st*> events;
  int streams_made = 0, events_made = 0;
  std::uint64_t seed = 0, state = 0;
  Counters counters;
  std::atomic<Clock::rep> last_entry{0};

  Gpu() {
    const char* const chosen = std::getenv("DROPCYCLE_STAND_IN_SEED");
    seed = chosen != nullptr ? std::strtoull(chosen, nullptr, 10) : static_cast<std::uint64_t>(getpid());
    state = seed;
  }
};

Gpu& gpu() {
  static Gpu* const instance = new Gpu;
  return *instance;
}

std::uint64_t random_word() {
  std::uint64_t word = gpu().state += 0x9e3779b97f4a7c15U;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9U;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebU;
  return word ^ (word >> 31);
}

bool run(const Work& work) {
  try {
    return work.run();
  } catch (const std::exception& error) {
    die(fmt::format("{}: {}", work.what, error.what()));
  }
}

// One piece of work of the stream with the highest random priority that can go on; false: none can.
bool run_one() {
  Gpu& g = gpu();
  std::erase_if(g.streams, [](const auto& stream) { return stream->destroyed && stream->work.empty(); });
  std::vector<CUstream_st*> busy;
  for (const auto& stream : g.streams) {
    if (!stream->work.empty()) busy.push_back(stream.get());
  }
  if (busy.empty()) return false;
  constexpr std::uint64_t kTurnsToChange = 8;
  if (random_below(kTurnsToChange) == 0) busy[random_below(busy.size())]->priority = random_word();
  std::ranges::sort(busy, std::greater(), &CUstream_st::priority);
  for (CUstream_st* const stream : busy) {
    if (!run(stream->work.front())) continue;
    stream->work.pop_front();
    return true;
  }
  return false;
}

bool is_idle() {
  return std::ranges::all_of(gpu().streams, [](const auto& stream) { return stream->work.empty(); });
}

std::string describe_streams() {
  std::string text;
  for (const auto& stream : gpu().streams) {
    if (stream->work.empty()) continue;
    text += fmt::format("; stream {} is at {} with {} behind it", stream->number, stream->work.front().what,
                        stream->work.size() - 1);
  }
  return text;
}

CUstream_st& stream_of(cudaStream_t stream, std::string_view call) {
  demand(stream != nullptr, "{} on the default stream, which waits for all others", call);
  const auto found = std::ranges::find(gpu().streams, stream, &std::unique_ptr<CUstream_st>::get);
  demand(found != gpu().streams.end() && !(*found)->destroyed, "{} on a stream that was destroyed", call);
  return **found;
}

CUevent_st::State& event_of(cudaEvent_t event, std::string_view call) {
  demand(gpu().events.contains(event), "{} of an event that was destroyed", call);
  return *event->state;
}

// While the host is elsewhere for longer than a few milliseconds the streams go on.
void help() {
  constexpr std::chrono::milliseconds kAway{3};
  for (;;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    Gpu& g = gpu();
    if (Clock::now().time_since_epoch().count() - g.last_entry.load() < Clock::duration(kAway).count()) continue;
    const std::unique_lock lock(g.mutex, std::try_to_lock);
    if (!lock.owns_lock() || is_idle()) continue;
    const OpenMemory open;
    const auto until = Clock::now() + kAway;  // the host may come back
    while (Clock::now() < until && run_one()) {
    }
  }
}

}  // namespace

void die(std::string_view message) {
  const char* const rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const std::string line =
      fmt::format("CUDA stand-in: {}{}{} (DROPCYCLE_STAND_IN_SEED={})\n", rank == nullptr ? "" : "rank ",
                  rank == nullptr ? "" : std::string(rank) + ": ", message, gpu().seed);
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
  _exit(86);
}

Entry::Entry() {
  gpu().mutex.lock();
  gpu().last_entry = Clock::now().time_since_epoch().count();
}
Entry::~Entry() {
  gpu().last_entry = Clock::now().time_since_epoch().count();
  gpu().mutex.unlock();
}

std::uint64_t seed() { return gpu().seed; }
std::uint64_t random_below(std::uint64_t bound) { return random_word() % bound; }
Counters& counters() { return gpu().counters; }
Counters counted() {
  const Entry entry;
  return counters();
}

bool Patience::wait() {
  usleep(20);
  return Clock::now() - start_ < kPatience;
}

void enqueue(cudaStream_t stream, std::string what, std::function<bool()> run) {
  const Entry entry;
  CUstream_st& s = stream_of(stream, what);
  if (s.recording != nullptr) {
    s.recording->work.push_back({std::move(what), std::move(run)});
  } else {
    s.work.push_back({std::move(what), std::move(run)});
  }
}

bool is_recording(cudaStream_t stream) { return stream_of(stream, "a question about a stream").recording != nullptr; }

void run_until(const std::function<bool()>& condition, std::string_view waiting_for) {
  demand(std::ranges::none_of(gpu().streams, [](const auto& stream) { return stream->recording != nullptr; }),
         "{} while a stream records a graph", waiting_for);
  while (!condition()) {
    Patience patience;
    for (;;) {
      {
        const OpenMemory open;
        bool progress = false;
        while (!condition() && run_one()) progress = true;
        if (progress) break;
      }
      if (condition()) return;
      demand(patience.wait(), "nothing goes on any more: the host is in {}{}", waiting_for, describe_streams());
    }
  }
}

void run_everything(std::string_view waiting_for) { run_until(is_idle, waiting_for); }

}  // namespace stand_in

using namespace stand_in;

extern "C" {

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

// The order is random whatever the priority.
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* result, unsigned flags, int) {
  const Entry entry;
  demand(flags == cudaStreamNonBlocking, "a stream that waits for the default stream");
  Gpu& g = gpu();
  if (g.streams_made == 0) {
    std::thread(help).detach();
    dropcycle::emulation::enqueue = [](cudaStream_t on, std::function<void()> kernel) {
      const Entry kernel_entry;
      ++counters().kernels;
      enqueue_once(on, "a kernel", [kernel = std::move(kernel)] {
        begin_kernel();
        kernel();
      });
    };
  }
  g.streams.push_back(std::make_unique<CUstream_st>());
  *result = g.streams.back().get();
  (*result)->number = g.streams_made++;
  (*result)->priority = random_word();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Entry entry;
  stream_of(stream, "cudaStreamDestroy").destroyed = true;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Entry entry;
  const CUstream_st& s = stream_of(stream, "cudaStreamSynchronize");
  run_until([&] { return s.work.empty(); }, "cudaStreamSynchronize");
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const Entry entry;
  const CUstream_st& s = stream_of(stream, "cudaStreamQuery");
  const OpenMemory open;
  if (!s.work.empty()) run_one();
  return s.work.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize() {
  const Entry entry;
  run_everything("cudaDeviceSynchronize");
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* result, unsigned) {
  const Entry entry;
  *result = new CUevent_st{std::make_shared<CUevent_st::State>()};
  (*result)->state->number = gpu().events_made++;
  gpu().events.insert(*result);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* result) { return cudaEventCreateWithFlags(result, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Entry entry;
  demand(gpu().events.erase(event) == 1, "cudaEventDestroy of an event that was destroyed");
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Entry entry;
  const auto state = (event_of(event, "cudaEventRecord"), event->state);
  state->in_graph = stream_of(stream, "cudaEventRecord").recording;
  if (state->in_graph != nullptr) return cudaSuccess;  // a graph's work runs in the order of the calls
  const std::int64_t number = ++state->recorded;
  enqueue_once(stream, fmt::format("the record of event {}", state->number),
               [state, number] { state->reached = std::max(state->reached, number); });
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Entry entry;
  const auto state = (event_of(event, "cudaStreamWaitEvent"), event->state);
  CUstream_st& s = stream_of(stream, "cudaStreamWaitEvent");
  if (state->in_graph != nullptr) {  // the stream takes part in the graph
    demand(s.recording == nullptr || s.recording == state->in_graph, "a wait for another graph's event");
    s.recording = state->in_graph;
    return cudaSuccess;
  }
  demand(s.recording == nullptr, "a stream that records a graph waits for an event outside it");
  demand(state->recorded > 0, "cudaStreamWaitEvent of an event that was never recorded");
  enqueue(stream, fmt::format("the wait for event {}", state->number),
          [state, number = state->recorded] { return state->reached >= number; });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Entry entry;
  const CUevent_st::State& state = event_of(event, "cudaEventQuery");
  demand(state.recorded > 0, "cudaEventQuery of an event that was never recorded");
  const OpenMemory open;
  if (state.reached < state.recorded) run_one();
  return state.reached >= state.recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Entry entry;
  CUstream_st& s = stream_of(stream, "cudaStreamBeginCapture");
  demand(s.recording == nullptr, "a stream records two graphs");
  s.recording = new CUgraph_st;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Entry entry;
  *graph = stream_of(stream, "cudaStreamEndCapture").recording;
  demand(*graph != nullptr, "cudaStreamEndCapture of a stream that records nothing");
  for (const auto& other : gpu().streams) {
    if (other->recording == *graph) other->recording = nullptr;
  }
  for (CUevent_st* const event : gpu().events) {
    if (event->state->in_graph == *graph) event->state->in_graph = nullptr;
  }
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Entry entry;
  *executable = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->work)};
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Entry entry;
  ++counters().launches;
  enqueue_once(stream, "a graph", [work = executable->work] {
    for (const Work& each : *work) demand(run(each), "{} waits within a graph", each.what);
  });
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Entry entry;
  const CUevent_st::State& state = event_of(event, "cudaEventSynchronize");
  demand(state.recorded > 0, "cudaEventSynchronize of an event that was never recorded");
  run_until([&] { return state.reached >= state.recorded; }, "cudaEventSynchronize");
  return cudaSuccess;
}

}  // extern "C"
