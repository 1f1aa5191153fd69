// Device memory: a file of this process mapped at one place, closed unless work runs. Every allocation has its own
// pages and a closed page behind it; addresses are used once.
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include <cuda_runtime_api.h>

#include "stand_in.hpp"

namespace stand_in {
namespace {

constexpr std::size_t kPage = 4096, kAlignment = 256, kOpened = 1 << 20;

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Extents of pages.
struct Allocation {
  std::size_t bytes, first_page, pages_bytes;
  bool given_back = false;  // the stream will come to it
};

struct Memory {
  int file = -1;
  std::byte* base = nullptr;
  std::size_t next = 0, used = 0;
  std::size_t capacity = std::size_t{16} << 30;
  std::map<std::size_t, Allocation> live;   // by offset
  std::map<std::size_t, std::size_t> dead;  // freed: offset to bytes
  std::map<std::byte*, std::size_t> pinned;
  std::vector<std::pair<std::byte*, std::size_t>> open;

  Memory() {
    if (const char* limit = std::getenv("DROPCYCLE_STAND_IN_MEMORY_MIB")) capacity = std::stoull(limit) << 20;
    file = memfd_create("dropcycle_device_memory", MFD_CLOEXEC);
    demand(file >= 0 && ftruncate(file, kDeviceSpace) == 0, "no file for device memory: {}", std::strerror(errno));
    void* const place = mmap(nullptr, kDeviceSpace, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    demand(place != MAP_FAILED, "no addresses for device memory: {}", std::strerror(errno));
    base = static_cast<std::byte*>(place);
  }
};

Memory& memory() {
  static Memory* const instance = new Memory;  // outlives static objects that free
  return *instance;
}

thread_local int running = 0;  // this thread runs work

bool in_device(const void* address) {
  const auto* const at = static_cast<const std::byte*>(address);
  return at >= memory().base && at < memory().base + kDeviceSpace;
}

// What was given back may still be used by work that was asked for before.
std::map<std::size_t, Allocation>::iterator find_live(std::size_t offset) {
  auto& live = memory().live;
  auto next = live.upper_bound(offset);
  if (next == live.begin()) return live.end();
  --next;
  return offset < next->first + next->second.bytes || offset == next->first ? next : live.end();
}

std::string describe(const void* address) {
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(address) - memory().base);
  if (const auto found = find_live(offset); found != memory().live.end()) {
    return fmt::format("byte {} of an allocation of {} bytes", offset - found->first, found->second.bytes);
  }
  if (auto after = memory().dead.upper_bound(offset); after != memory().dead.begin()) {
    --after;
    if (offset < after->first + after->second) {
      return fmt::format("byte {} of freed memory ({} bytes)", offset - after->first, after->second);
    }
  }
  if (auto after = memory().live.upper_bound(offset); after != memory().live.begin()) {
    --after;
    return fmt::format("{} bytes behind the end of an allocation of {} bytes",
                       offset - after->first - after->second.bytes, after->second.bytes);
  }
  return "memory that was never allocated";
}

// Opens what running work touches; ends the process where anybody else does.
void on_fault(int number, siginfo_t* info, void*) {
  if (in_device(info->si_addr)) {
    const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(info->si_addr) - memory().base);
    const auto found = find_live(offset);
    if (running > 0 && found != memory().live.end()) {
      const Allocation& allocation = found->second;
      const std::size_t page = offset / kOpened * kOpened;
      const std::size_t first = std::max(page, allocation.first_page);
      const std::size_t last = std::min(page + kOpened, allocation.first_page + allocation.pages_bytes);
      mprotect(memory().base + first, last - first, PROT_READ | PROT_WRITE);
      memory().open.emplace_back(memory().base + first, last - first);
      return;
    }
    die(fmt::format("{} touches {}", running > 0 ? "a kernel or product" : "the host", describe(info->si_addr)));
  }
  signal(number, SIG_DFL);
  raise(number);
}

void close_memory() {
  for (const auto& [place, bytes] : memory().open) mprotect(place, bytes, PROT_NONE);
  memory().open.clear();
}

using SigactionFunction = int (*)(int, const struct sigaction*, struct sigaction*);
SigactionFunction real_sigaction() {
  static const auto function = reinterpret_cast<SigactionFunction>(dlsym(RTLD_NEXT, "sigaction"));
  return function;
}

void catch_faults() {
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  real_sigaction()(SIGSEGV, &action, nullptr);
}

}  // namespace

OpenMemory::OpenMemory() {
  thread_local std::vector<std::byte> stack;
  if (stack.empty()) {  // kernels run on small stacks of their own
    stack.resize(1 << 16);
    const stack_t other{.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
    sigaltstack(&other, nullptr);
  }
  ++running;
}

OpenMemory::~OpenMemory() {
  if (--running == 0) close_memory();
}

void check_device(const void* address, std::size_t bytes, std::string_view what, Use at) {
  demand(in_device(address), "{}: {} is not device memory", what, address);
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(address) - memory().base);
  const auto found = find_live(offset);
  demand(found != memory().live.end(), "{}: the address is {}", what, describe(address));
  demand(at == Use::runs || !found->second.given_back, "{}: the memory was given back ({})", what, describe(address));
  demand(offset + bytes <= found->first + found->second.bytes, "{}: {} bytes from {}", what, bytes, describe(address));
}

bool is_pinned(const void* address, std::size_t bytes) {
  auto* const at = static_cast<std::byte*>(const_cast<void*>(address));
  auto next = memory().pinned.upper_bound(at);
  return next != memory().pinned.begin() && at + bytes <= (--next)->first + next->second;
}

std::byte* memory_base() { return memory().base; }
int memory_file() { return memory().file; }

const std::byte* memory_of_process(int process, int file) {
  static auto* const known = new std::map<std::pair<int, int>, const std::byte*>;
  const std::byte*& place = (*known)[{process, file}];
  if (place == nullptr) {
    const int opened = open(fmt::format("/proc/{}/fd/{}", process, file).c_str(), O_RDONLY | O_CLOEXEC);
    demand(opened >= 0, "device memory of process {}: {}", process, std::strerror(errno));
    void* const mapped = mmap(nullptr, kDeviceSpace, PROT_READ, MAP_SHARED | MAP_NORESERVE, opened, 0);
    demand(mapped != MAP_FAILED, "device memory of process {}: {}", process, std::strerror(errno));
    place = static_cast<const std::byte*>(mapped);
  }
  return place;
}

namespace {

int exit_status = 0;
__attribute__((constructor)) void remember_exit_status() {
  on_exit([](int status, void*) { exit_status = status; }, nullptr);
}

// Not where the process fails for another reason.
__attribute__((destructor)) void report_leaks() {
  if (counters().live_allocations == 0 || exit_status != 0) return;
  std::string line = fmt::format("CUDA stand-in: {} allocations of device memory ({} bytes) were never freed\n",
                                 counters().live_allocations, counters().live_bytes);
  std::fwrite(line.data(), 1, line.size(), stderr);
  _exit(86);
}

}  // namespace
}  // namespace stand_in

using namespace stand_in;

extern "C" {

// The handler of faults stays ours.
int sigaction(int number, const struct sigaction* action, struct sigaction* before) noexcept {
  if (number == SIGSEGV && action != nullptr && memory().file >= 0) {
    catch_faults();
    return before == nullptr ? 0 : real_sigaction()(number, nullptr, before);
  }
  return real_sigaction()(number, action, before);
}

cudaError_t cudaMallocAsync(void** result, size_t bytes, cudaStream_t stream) {
  const Entry entry;
  static const bool once = (catch_faults(), true);
  demand(once && bytes > 0, "cudaMallocAsync of no bytes");
  demand(!is_recording(stream), "cudaMallocAsync in a graph");
  Memory& m = memory();
  if (m.used + bytes > m.capacity) return cudaErrorMemoryAllocation;
  const std::size_t rounded = round_up(bytes, kAlignment), pages = round_up(rounded, kPage);
  demand(m.next + pages + kPage <= kDeviceSpace, "out of addresses");
  const std::size_t offset = m.next + pages - rounded;
  m.live[offset] = {bytes, m.next, pages};
  m.next += pages + kPage;
  m.used += bytes;
  ++counters().allocations;
  ++counters().live_allocations;
  counters().live_bytes += static_cast<std::int64_t>(bytes);
  *result = m.base + offset;
  static constexpr std::size_t kPoisoned = 64 << 20;  // NaNs in every format
  enqueue_once(stream, "an allocation",
               [place = *result, bytes] { std::memset(place, 0xFF, std::min(bytes, kPoisoned)); });
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  const Entry entry;
  demand(in_device(address), "cudaFreeAsync of {}, which is not device memory", address);
  const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(address) - memory().base);
  const auto found = memory().live.find(offset);
  demand(found != memory().live.end() && !found->second.given_back, "cudaFreeAsync of {}", describe(address));
  found->second.given_back = true;
  memory().used -= found->second.bytes;
  --counters().live_allocations;
  counters().live_bytes -= static_cast<std::int64_t>(found->second.bytes);
  enqueue_once(stream, "a release of memory", [offset] {
    const Allocation allocation = memory().live.at(offset);
    memory().live.erase(offset);
    memory().dead[offset] = allocation.bytes;
    close_memory();
    fallocate(memory().file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(allocation.first_page),
              static_cast<off_t>(allocation.pages_bytes));
  });
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = reinterpret_cast<cudaMemPool_t>(&memory());
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Entry entry;
  *free = memory().capacity - memory().used;
  *total = memory().capacity;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** result, size_t bytes, unsigned) {
  const Entry entry;
  void* const place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  demand(place != MAP_FAILED, "no pinned memory: {}", std::strerror(errno));
  memory().pinned[static_cast<std::byte*>(place)] = bytes;
  *result = place;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** result, size_t bytes) { return cudaHostAlloc(result, bytes, 0); }

cudaError_t cudaFreeHost(void* address) {
  const Entry entry;
  const auto found = memory().pinned.find(static_cast<std::byte*>(address));
  demand(found != memory().pinned.end(), "cudaFreeHost of {}, which is not pinned memory", address);
  run_everything("cudaFreeHost");
  munmap(address, found->second);
  memory().pinned.erase(found);
  return cudaSuccess;
}

}  // extern "C"
