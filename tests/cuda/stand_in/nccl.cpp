// NCCL's names over memory that processes share. An operation begins when the rank's stream reaches it, ends when all
// ranks' streams have, and all ranks must have asked for the same. Sums run round the ring, as NCCL's may, and not in
// the order of the ranks.
#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "nccl_shared.hpp"
#include "stand_in.hpp"

namespace stand_in {
namespace {

enum class Kind : std::int32_t { all_reduce, reduce_scatter, all_gather, reduce, broadcast, send, receive };

std::string_view name(Kind kind) {
  constexpr std::string_view kNames[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather", "ncclReduce",
                                         "ncclBroadcast", "ncclSend",          "ncclRecv"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    default:
      return 8;
  }
}

std::string_view name(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return "bytes";
    case ncclInt32:
      return "int32";
    case ncclFloat32:
      return "float32";
    case ncclFloat64:
      return "float64";
    default:
      return "elements";
  }
}

struct State {
  Segment* segment = nullptr;
  int block = 0, rank = 0, size = 0;
  std::vector<int> world_ranks;
  std::uint64_t asked = 0, done = 0;  // operations of this rank
  std::uint64_t collectives = 0, splits = 0;
  std::array<std::uint64_t, kMostRanks> sent{}, received{};
  bool aborted = false;
  bool failed =
      false;  // its work never ends (DROPCYCLE_STAND_IN_NCCL_FAILS_AT: the number of the first such operation)

  Block& shared() const { return segment->all[static_cast<std::size_t>(block)]; }
  Slot& slot(int r) const { return shared().slots[static_cast<std::size_t>(r)]; }
  Mailbox& mailbox(int from, int to) const {
    return shared().mailboxes[static_cast<std::size_t>(from)][static_cast<std::size_t>(to)];
  }
  const std::byte* memory_of(int r) const {
    const auto& process = segment->processes[static_cast<std::size_t>(world_ranks[static_cast<std::size_t>(r)])];
    return memory_of_process(process.process, process.memory_file);
  }
  std::string describe() const {
    return fmt::format("communicator {} of world ranks {}, rank {}", block, fmt::join(world_ranks, " "), rank);
  }
};
using StatePointer = std::shared_ptr<State>;

struct Operation {
  Kind kind;
  const void* send;
  void* receive;
  std::uint64_t count;
  ncclDataType_t type;
  ncclRedOp_t operation;
  int root;                 // or the other rank of a message
  std::uint64_t number;     // of the collective in its communicator, or of the message
  std::uint64_t asked = 0;  // of the collective in this process
  int phase = 0;            // 0: not begun, 1: this rank has come, 2: all inputs are read, 3: done
  std::vector<std::byte> result = {};

  std::size_t bytes() const { return count * bytes_of(type); }
  bool is_message() const { return kind == Kind::send || kind == Kind::receive; }
};

std::string describe(const State& state, Kind kind, std::uint64_t count, ncclDataType_t type, int root) {
  const std::string_view peer = kind == Kind::send                                ? " to rank "
                                : kind == Kind::receive                           ? " from rank "
                                : kind == Kind::reduce || kind == Kind::broadcast ? " with root "
                                                                                  : "";
  return fmt::format("{} of {} {}{}{} ({})", name(kind), count, name(type), peer,
                     peer.empty() ? "" : std::to_string(root), state.describe());
}
std::string describe(const State& state, const Operation& o) {
  return describe(state, o.kind, o.count, o.type, o.root);
}

// Bytes that a rank's send and receive buffers hold.
std::size_t send_bytes(const State& state, const Operation& o, int rank) {
  if (o.kind == Kind::receive || (o.kind == Kind::broadcast && rank != o.root)) return 0;
  return o.bytes() * static_cast<std::size_t>(o.kind == Kind::reduce_scatter ? state.size : 1);
}
std::size_t receive_bytes(const State& state, const Operation& o) {
  if (o.kind == Kind::send || (o.kind == Kind::reduce && state.rank != o.root)) return 0;
  return o.bytes() * static_cast<std::size_t>(o.kind == Kind::all_gather ? state.size : 1);
}

// In place is allowed where NCCL says so, and nowhere else may the buffers overlap.
void check_buffers(const State& state, const Operation& o, Use at) {
  const std::size_t sent = send_bytes(state, o, state.rank), received = receive_bytes(state, o);
  if (sent > 0) check_device(o.send, sent, describe(state, o), at);
  if (received > 0) check_device(o.receive, received, describe(state, o), at);
  const auto* const send = static_cast<const std::byte*>(o.send);
  const auto* const receive = static_cast<const std::byte*>(o.receive);
  const bool overlap = sent > 0 && received > 0 && send < receive + received && receive < send + sent;
  const std::size_t own = static_cast<std::size_t>(state.rank) * o.bytes();
  const std::byte* const in_place_send = o.kind == Kind::all_gather ? receive + own : receive;
  const std::byte* const in_place_receive = o.kind == Kind::reduce_scatter ? send + own : send;
  demand(!overlap || send == in_place_send || receive == in_place_receive, "{}: its buffers overlap",
         describe(state, o));
  constexpr std::size_t kAlignment = 16;
  demand(o.type == ncclUint8 || reinterpret_cast<std::uintptr_t>(o.send) % bytes_of(o.type) == 0,
         "{}: a buffer isn't aligned to its elements ({} bytes at best)", describe(state, o), kAlignment);
}

// result[i] = Σ over the ranks of their element `first + i`, beginning behind rank `start`.
template <class T>
void sum(const State& state, std::uint64_t first, std::uint64_t count, int start, T* result) {
  for (int step = 1; step <= state.size; ++step) {
    const int r = (start + step) % state.size;
    const auto* const x = reinterpret_cast<const T*>(state.memory_of(r) + state.slot(r).call.send) + first;
    for (std::uint64_t i = 0; i < count; ++i) result[i] = step == 1 ? x[i] : static_cast<T>(result[i] + x[i]);
  }
}

template <class T>
void reduce(const State& state, Operation& o) {
  o.result.resize(o.bytes());
  T* const result = reinterpret_cast<T*>(o.result.data());
  const auto n = static_cast<std::uint64_t>(state.size);
  if (o.kind == Kind::all_reduce) {
    const std::uint64_t piece = (o.count + n - 1) / n;
    for (std::uint64_t r = 0; r < n; ++r) {
      const std::uint64_t first = std::min(o.count, r * piece), last = std::min(o.count, first + piece);
      sum(state, first, last - first, static_cast<int>(r), result + first);
    }
  } else if (o.kind == Kind::reduce_scatter) {
    sum(state, static_cast<std::uint64_t>(state.rank) * o.count, o.count, state.rank, result);
  } else if (state.rank == o.root) {
    sum(state, 0, o.count, o.root, result);
  } else {
    o.result.clear();
  }
}

void compute(const State& state, Operation& o) {
  const auto copy_from = [&](int r) {
    const std::byte* const x = state.memory_of(r) + state.slot(r).call.send;
    o.result.insert(o.result.end(), x, x + o.bytes());
  };
  switch (o.kind) {
    case Kind::all_gather:
      for (int r = 0; r < state.size; ++r) copy_from(r);
      return;
    case Kind::broadcast:
      return copy_from(o.root);
    default:
      break;
  }
  switch (o.type) {
    case ncclFloat32:
      return reduce<float>(state, o);
    case ncclFloat64:
      return reduce<double>(state, o);
    case ncclInt32:
      return reduce<std::int32_t>(state, o);
    default:
      die(fmt::format("{}: a sum of this type", describe(state, o)));
  }
}

bool everyone(const State& state, std::atomic<std::uint64_t> Slot::*counter, std::uint64_t number) {
  for (int r = 0; r < state.size; ++r) {
    if ((state.slot(r).*counter).load(std::memory_order_acquire) < number) return false;
  }
  return true;
}

// Two ranks ask for the collectives that they share in the same order, whatever communicators these belong to: on GPUs
// that have no room for both at once another order waits for ever.
void check_order(const State& state, const Operation& o, int r, std::uint64_t theirs) {
  static auto* const seen = new std::map<std::pair<const Segment*, int>, std::map<std::uint64_t, std::uint64_t>>;
  auto& pairs = (*seen)[{state.segment, state.world_ranks[static_cast<std::size_t>(r)]}];
  const auto [place, is_new] = pairs.try_emplace(o.asked, theirs);
  const auto after = std::next(place);
  demand(is_new && (place == pairs.begin() || std::prev(place)->second < theirs) &&
             (after == pairs.end() || theirs < after->second),
         "{}: its rank {} asked for it in another order among the collectives of other communicators",
         describe(state, o), r);
  constexpr std::size_t kRemembered = 1000;
  if (pairs.size() > kRemembered) pairs.erase(pairs.begin());
}

void check_same(const State& state, const Operation& o) {
  const Call& own = state.slot(state.rank).call;
  for (int r = 0; r < state.size; ++r) {
    const Call& other = state.slot(r).call;
    const bool same = other.kind == own.kind && other.type == own.type && other.operation == own.operation &&
                      other.root == own.root && other.count == own.count;
    demand(same, "{}, while its rank {} calls {} of {} {} with root {}: call {} of the communicator",
           describe(state, o), r, name(static_cast<Kind>(other.kind)), other.count,
           name(static_cast<ncclDataType_t>(other.type)), other.root, o.number);
    if (r != state.rank) check_order(state, o, r, other.asked);
  }
}

std::uint64_t offset_of(const void* address) {
  return address == nullptr ? 0 : static_cast<std::uint64_t>(static_cast<const std::byte*>(address) - memory_base());
}

bool go_on_collective(const State& state, Operation& o) {
  Slot& slot = state.slot(state.rank);
  if (o.phase == 0) {
    check_buffers(state, o, Use::runs);
    slot.call = {static_cast<std::int32_t>(o.kind),
                 o.type,
                 o.operation,
                 o.root,
                 o.count,
                 send_bytes(state, o, state.rank) > 0 ? offset_of(o.send) : 0,
                 o.asked};
    slot.arrived.store(o.number, std::memory_order_release);
    o.phase = 1;
  }
  if (o.phase == 1 && everyone(state, &Slot::arrived, o.number)) {
    check_same(state, o);
    compute(state, o);
    slot.finished.store(o.number, std::memory_order_release);
    o.phase = 2;
  }
  if (o.phase == 2 && everyone(state, &Slot::finished, o.number)) {
    if (!o.result.empty()) std::memcpy(o.receive, o.result.data(), o.result.size());
    o.phase = 3;
  }
  return o.phase == 3;
}

bool go_on_message(const State& state, Operation& o) {
  if (o.phase == 3) return true;
  if (o.kind == Kind::send) {
    Mailbox& box = state.mailbox(state.rank, o.root);
    const std::uint64_t taken = box.taken.load(std::memory_order_acquire);
    if (o.phase == 0 && taken + 1 == o.number) {
      check_buffers(state, o, Use::runs);
      box.send = offset_of(o.send);
      box.bytes = o.bytes();
      box.posted.store(o.number, std::memory_order_release);
      o.phase = 1;
    }
    if (o.phase == 1 && taken >= o.number) o.phase = 3;
    return o.phase == 3;
  }
  Mailbox& box = state.mailbox(o.root, state.rank);
  if (box.posted.load(std::memory_order_acquire) < o.number) return false;
  check_buffers(state, o, Use::runs);
  demand(box.bytes == o.bytes(), "{}, but the message that comes has {} bytes", describe(state, o), box.bytes);
  std::memcpy(o.receive, state.memory_of(o.root) + box.send, o.bytes());
  box.taken.store(o.number, std::memory_order_release);
  o.phase = 3;
  return true;
}

// Collectives one after another, messages side by side.
bool go_on(const State& state, std::vector<Operation>& operations) {
  bool done = true, collective_waits = false;
  for (Operation& o : operations) {
    if (o.is_message()) {
      done = go_on_message(state, o) && done;
    } else {
      if (!collective_waits && !go_on_collective(state, o)) collective_waits = true;
      done = done && !collective_waits;
    }
  }
  return done;
}

void ask(const StatePointer& state, std::vector<Operation> operations, cudaStream_t stream) {
  const std::uint64_t turn = state->asked++;
  static const char* const fails_at = std::getenv("DROPCYCLE_STAND_IN_NCCL_FAILS_AT");
  if (fails_at != nullptr && counters().collectives >= std::atoi(fails_at)) state->failed = true;
  std::string what = describe(*state, operations.front());
  if (operations.size() > 1) what += fmt::format(" and {} more in its group", operations.size() - 1);
  auto shared = std::make_shared<std::vector<Operation>>(std::move(operations));
  enqueue(stream, std::move(what), [state, turn, shared] {
    if (state->aborted) return true;
    if (state->failed || state->done != turn)
      return false;  // a communicator's operations run in the order of their calls
    if (!go_on(*state, *shared)) return false;
    ++state->done;
    return true;
  });
}

struct Queued {
  StatePointer state;
  Operation operation;
  cudaStream_t stream;
};
int group_depth = 0;
std::vector<Queued> group;

void end_group() {
  std::vector<Queued> queued = std::exchange(group, {});
  while (!queued.empty()) {
    const StatePointer state = queued.front().state;
    const cudaStream_t stream = queued.front().stream;
    std::vector<Operation> mine;
    std::vector<Queued> others;
    for (Queued& q : queued) {
      if (q.state != state) {
        others.push_back(std::move(q));
        continue;
      }
      demand(q.stream == stream, "{}: two streams in one group", describe(*state, q.operation));
      mine.push_back(std::move(q.operation));
    }
    ask(state, std::move(mine), stream);
    queued = std::move(others);
  }
}

}  // namespace
}  // namespace stand_in

struct ncclComm {
  stand_in::StatePointer state;
};

using namespace stand_in;

namespace {

struct Id {
  std::uint64_t magic;
  int process, file;
};
constexpr std::uint64_t kMagic = 0x64726f706379636cULL;

Segment* map_segment(int file) {
  void* const place = mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  demand(place != MAP_FAILED, "no memory to share: {}", std::strerror(errno));
  return static_cast<Segment*>(place);
}

template <class F>
void wait_for(F&& condition, std::string_view what) {
  Patience patience;
  while (!condition()) demand(patience.wait(), "another rank does not come to {}", what);
}

State& state_of(ncclComm_t comm, std::string_view call) {
  demand(comm != nullptr && comm->state != nullptr, "{} on a communicator that is none", call);
  demand(!comm->state->aborted, "{} on a communicator that was aborted", call);
  return *comm->state;
}

ncclResult_t call(Kind kind, const void* send, void* receive, std::size_t count, ncclDataType_t type,
                  ncclRedOp_t operation, int root, ncclComm_t comm, cudaStream_t stream) {
  const Entry entry;
  State& state = state_of(comm, name(kind));
  Operation o{kind, send, receive, count, type, operation, root, 0};
  demand(count > 0, "{}: nothing to do", describe(state, o));
  demand(root >= 0 && root < state.size, "{}: no such rank", describe(state, o));
  demand(operation == ncclSum, "{}: not a sum", describe(state, o));
  const auto peer = static_cast<std::size_t>(root);
  if (o.is_message()) {
    demand(root != state.rank, "{}: a message to itself", describe(state, o));
    o.number = kind == Kind::send ? ++state.sent[peer] : ++state.received[peer];
  } else {
    o.number = ++state.collectives;
    static std::uint64_t asked = 0;
    o.asked = ++asked;
  }
  check_buffers(state, o, Use::asked_for);
  demand(!is_recording(stream), "{} in a graph", describe(state, o));
  counters().collective_bytes += static_cast<std::int64_t>(send_bytes(state, o, state.rank) + receive_bytes(state, o));
  ++counters().collectives;
  group.push_back({comm->state, std::move(o), stream});
  if (group_depth == 0) end_group();
  return ncclSuccess;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* result) {
  const Entry entry;
  const int file = memfd_create("dropcycle_nccl", 0);
  demand(file >= 0 && ftruncate(file, sizeof(Segment)) == 0, "no memory to share: {}", std::strerror(errno));
  map_segment(file)->blocks.store(1);
  const Id id{kMagic, getpid(), file};
  std::memset(result, 0, sizeof *result);
  std::memcpy(result, &id, sizeof id);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* result, int ranks, ncclUniqueId unique, int rank,
                                    ncclConfig_t* config) {
  const Entry entry;
  demand(group_depth == 0, "ncclCommInitRankConfig within a group");
  Id id{};
  std::memcpy(&id, &unique, sizeof id);
  demand(id.magic == kMagic, "ncclCommInitRankConfig with an id that ncclGetUniqueId didn't make");
  demand(config == nullptr || config->size == sizeof(ncclConfig_t), "ncclCommInitRankConfig with a strange config");
  demand(0 <= rank && rank < ranks && ranks <= kMostRanks, "ncclCommInitRankConfig of rank {} of {}", rank, ranks);
  const int file = open(fmt::format("/proc/{}/fd/{}", id.process, id.file).c_str(), O_RDWR | O_CLOEXEC);
  demand(file >= 0, "the id of another job, or of one that ended");
  auto state = std::make_shared<State>();
  state->segment = map_segment(file);
  close(file);
  state->rank = rank;
  state->size = ranks;
  for (int r = 0; r < ranks; ++r) state->world_ranks.push_back(r);
  auto& processes = state->segment->processes;
  auto& own = processes[static_cast<std::size_t>(rank)];
  own.process = getpid();
  own.memory_file = memory_file();
  demand(own.joined.exchange(1) == 0, "two ranks {} of {}", rank, ranks);
  wait_for(
      [&] {
        return std::all_of(processes.begin(), processes.begin() + ranks,
                           [](const Segment::Process& process) { return process.joined.load() == 1; });
      },
      "ncclCommInitRankConfig");
  *result = new ncclComm{std::move(state)};
  return ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* result, ncclConfig_t*) {
  const Entry entry;
  State& parent = state_of(comm, "ncclCommSplit");
  demand(group_depth == 0, "ncclCommSplit within a group");
  demand(parent.asked == parent.done, "ncclCommSplit while {} is at work", parent.describe());
  const std::uint64_t number = ++parent.splits;
  Slot& own = parent.slot(parent.rank);
  own.color = color;
  own.key = key;
  own.split.store(number, std::memory_order_release);
  wait_for([&] { return everyone(parent, &Slot::split, number); }, "ncclCommSplit");
  std::vector<std::pair<int, int>> members;  // key, rank
  for (int r = 0; r < parent.size; ++r) {
    if (parent.slot(r).color == color) members.emplace_back(parent.slot(r).key, r);
  }
  std::ranges::sort(members);
  auto state = std::make_shared<State>();
  state->segment = parent.segment;
  state->size = static_cast<int>(members.size());
  for (const auto& [member_key, r] : members) {
    if (r == parent.rank) state->rank = static_cast<int>(state->world_ranks.size());
    state->world_ranks.push_back(parent.world_ranks[static_cast<std::size_t>(r)]);
  }
  // The first member takes a block and says which.
  Slot& leader = parent.slot(members.front().second);
  if (color != NCCL_SPLIT_NOCOLOR && state->rank == 0) {
    const int block = parent.segment->blocks.fetch_add(1);
    demand(block < kBlocks, "too many communicators");
    leader.split_block.store(number << 32U | static_cast<std::uint64_t>(block), std::memory_order_release);
  } else if (color != NCCL_SPLIT_NOCOLOR) {
    wait_for([&] { return leader.split_block.load(std::memory_order_acquire) >> 32U == number; }, "ncclCommSplit");
  }
  if (color != NCCL_SPLIT_NOCOLOR) state->block = static_cast<int>(leader.split_block.load() & 0xFFFFFFFFU);
  // Nobody splits again before all have read.
  const std::uint64_t barrier = ++parent.collectives;
  own.arrived.store(barrier, std::memory_order_release);
  own.finished.store(barrier, std::memory_order_release);
  wait_for([&] { return everyone(parent, &Slot::finished, barrier); }, "ncclCommSplit");
  *result = color == NCCL_SPLIT_NOCOLOR ? nullptr : new ncclComm{std::move(state)};
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const Entry entry;
  const State& state = state_of(comm, "ncclCommDestroy");
  run_until([&] { return state.asked == state.done; }, "ncclCommDestroy");
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const Entry entry;
  state_of(comm, "ncclCommAbort").aborted = true;
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  const Entry entry;
  *error = state_of(comm, "ncclCommGetAsyncError").failed ? ncclRemoteError : ncclSuccess;
  return ncclSuccess;
}

const char* ncclGetLastError(ncclComm_t) { return ""; }
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSuccess ? "no error" : result == ncclRemoteError ? "remote error" : "an error";
}

ncclResult_t ncclGroupStart() {
  const Entry entry;
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  const Entry entry;
  demand(group_depth > 0, "ncclGroupEnd without ncclGroupStart");
  if (--group_depth == 0) end_group();
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t comm, cudaStream_t stream) {
  return call(Kind::all_reduce, send, receive, count, type, operation, 0, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t operation, ncclComm_t comm, cudaStream_t stream) {
  return call(Kind::reduce_scatter, send, receive, count, type, operation, 0, comm, stream);
}
ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return call(Kind::all_gather, send, receive, count, type, ncclSum, 0, comm, stream);
}
ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  return call(Kind::reduce, send, receive, count, type, operation, root, comm, stream);
}
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return call(Kind::broadcast, send, receive, count, type, ncclSum, root, comm, stream);
}
ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call(Kind::send, send, nullptr, count, type, ncclSum, peer, comm, stream);
}
ncclResult_t ncclRecv(void* receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return call(Kind::receive, nullptr, receive, count, type, ncclSum, peer, comm, stream);
}

}  // extern "C"
