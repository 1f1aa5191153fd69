#include "emulation.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

// This file itself is compiled without sanitizers; it tells them which stack is in use.
#if defined(EMULATION_ADDRESS_SANITIZER) || defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ADDRESS_SANITIZER 1
#else
#define ADDRESS_SANITIZER 0
#endif
#if defined(EMULATION_THREAD_SANITIZER) || defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#define THREAD_SANITIZER 1
#else
#define THREAD_SANITIZER 0
#endif

// Saves the registers that a call keeps, changes stacks, and takes the other's registers.
extern "C" void dropcycle_emulation_swap(void** save_stack, void* load_stack);
asm(R"(.text
.globl dropcycle_emulation_swap
.type dropcycle_emulation_swap,@function
dropcycle_emulation_swap:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size dropcycle_emulation_swap,.-dropcycle_emulation_swap
)");

namespace dropcycle::emulation {
namespace {

constexpr std::size_t kStackBytes = 128 << 10, kGuardBytes = 4096, kRedZoneBytes = 256;
constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 227 << 10;

void release([[maybe_unused]] void* key) {
#if THREAD_SANITIZER
  __tsan_release(key);
#endif
}
void acquire([[maybe_unused]] void* key) {
#if THREAD_SANITIZER
  __tsan_acquire(key);
#endif
}

// Memory filled with NaNs between two red zones.
class Guarded {
 public:
  explicit Guarded(std::size_t size_bytes) : size_(size_bytes) {
    const std::size_t whole = (size_bytes + 2 * kRedZoneBytes + 255) / 256 * 256;
    memory_ = static_cast<std::byte*>(std::aligned_alloc(256, whole));
    if (memory_ == nullptr) throw std::bad_alloc();
    whole_ = whole;
    fill();
#if ADDRESS_SANITIZER
    __asan_poison_memory_region(memory_, kRedZoneBytes);
    __asan_poison_memory_region(data() + size_, whole_ - kRedZoneBytes - size_);
#endif
  }
  Guarded(Guarded&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), size_(other.size_), whole_(other.whole_) {}
  Guarded& operator=(Guarded&&) = delete;
  ~Guarded() {
#if ADDRESS_SANITIZER
    if (memory_ != nullptr) __asan_unpoison_memory_region(memory_, whole_);
#endif
    std::free(memory_);
  }
  std::byte* data() const { return memory_ + kRedZoneBytes; }
  std::size_t size() const { return size_; }
  void fill() { std::memset(data(), 0xff, size_); }

 private:
  std::byte* memory_ = nullptr;
  std::size_t size_ = 0, whole_ = 0;
};

class Stack {
 public:
  Stack() {
    void* pages = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    mprotect(pages, kGuardBytes, PROT_NONE);
    begin_ = static_cast<std::byte*>(pages) + kGuardBytes;
  }
  Stack(Stack&& other) noexcept : begin_(std::exchange(other.begin_, nullptr)) {}
  Stack& operator=(Stack&&) = delete;
  ~Stack() {
    if (begin_ != nullptr) munmap(begin_ - kGuardBytes, kStackBytes + kGuardBytes);
  }
  std::byte* begin() const { return begin_; }

 private:
  std::byte* begin_ = nullptr;
};

enum class State : std::uint8_t { ready, at_barrier, in_warp, done };

struct Thread {
  unsigned number = 0;
  uint3 index{};
  State state = State::done;
  Place place;
  WarpOperation operation{};
  unsigned mask = 0, argument = 0;
  std::uint64_t value = 0, result = 0;
  void* stack_pointer = nullptr;
  std::byte* stack = nullptr;
  [[maybe_unused]] void* fake_stack = nullptr;
  [[maybe_unused]] void* fiber = nullptr;
};

std::string describe(const Thread& t) {
  return "thread " + std::to_string(t.number) + " at " + t.place.file_name() + ":" + std::to_string(t.place.line());
}

struct Array {
  const void* key;
  Guarded memory;
};

// The grid that runs: the scheduler's stack and all fibers.
struct Grid {
  unsigned count = 0;
  std::function<void()> body;
  std::vector<Thread> threads;
  std::vector<Stack> stacks;
  std::vector<unsigned> ready;
  std::unique_ptr<Guarded> dynamic;
  std::vector<Array> arrays;
  Thread* current = nullptr;
  std::string error;
  std::uint64_t random = 1;
  void* stack_pointer = nullptr;
  [[maybe_unused]] void* fake_stack = nullptr;
  [[maybe_unused]] void* fiber = nullptr;
  [[maybe_unused]] const void* stack_bottom = nullptr;
  [[maybe_unused]] std::size_t stack_size = 0;
  char barrier = 0, start = 0, finish = 0, arrays_key = 0;  // what orders threads for ThreadSanitizer
  std::vector<char> warps;

  unsigned draw(std::size_t end) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<unsigned>((random >> 16) % end);
  }
  void wake(Thread& t) {
    t.state = State::ready;
    ready.push_back(t.number);
  }
};

Grid& grid() {
  static Grid one;
  return one;
}

void switch_to_scheduler([[maybe_unused]] bool last) {
  Grid& g = grid();
  Thread* t = g.current;
#if ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(last ? nullptr : &t->fake_stack, g.stack_bottom, g.stack_size);
#endif
#if THREAD_SANITIZER
  __tsan_switch_to_fiber(g.fiber, 1);
#endif
  dropcycle_emulation_swap(&t->stack_pointer, g.stack_pointer);
#if ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(t->fake_stack, nullptr, nullptr);
#endif
}

void switch_to_thread(Thread& t) {
  Grid& g = grid();
  g.current = &t;
  position.thread = t.index;
#if ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&g.fake_stack, t.stack, kStackBytes);
#endif
#if THREAD_SANITIZER
  __tsan_switch_to_fiber(t.fiber, 1);
#endif
  dropcycle_emulation_swap(&g.stack_pointer, t.stack_pointer);
#if ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(g.fake_stack, nullptr, nullptr);
#endif
  g.current = nullptr;
}

void run_thread() {
  Grid& g = grid();
#if ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &g.stack_bottom, &g.stack_size);
#endif
  try {
    acquire(&g.start);
    g.body();
    release(&g.finish);  // which no other thread of the block acquires
  } catch (const std::exception& error) {
    if (g.error.empty()) g.error = error.what();
  }
  g.current->state = State::done;
  switch_to_scheduler(true);
  std::abort();
}

void prepare(Thread& t, unsigned number) {
  Grid& g = grid();
  const dim3& b = position.block_size;
  t.number = number;
  t.index = {number % b.x, number / b.x % b.y, number / (b.x * b.y)};
  t.stack = g.stacks[number].begin();
  t.fake_stack = nullptr;
#if THREAD_SANITIZER
  if (t.fiber == nullptr) t.fiber = __tsan_create_fiber(0);  // kept: making one is slow
#endif
  // The first swap pops six registers and returns to run_thread, on a stack that is aligned as after a call. Stacks
  // begin at different places of a page, or all would fight for the same lines of the cache.
  const std::size_t shift = number % 61 * 64;
  auto** top = reinterpret_cast<void**>(t.stack + kStackBytes - shift) - 2;
  *top = reinterpret_cast<void*>(&run_thread);
  t.stack_pointer = top - 6;
  g.wake(t);
}

void wait(State state, const Place& place) {
  Grid& g = grid();
  Thread& t = *g.current;
  t.state = state;
  t.place = place;
  void* key = state == State::at_barrier ? &g.barrier : &g.warps[t.number / kWarp];
  const bool orders =
      state == State::at_barrier || t.operation == WarpOperation::synchronize;  // shuffles order nothing
  if (orders) release(key);
  switch_to_scheduler(false);
  if (orders) acquire(key);
  if (!g.error.empty()) throw Error(g.error);  // unwinds every thread after a failure
}

unsigned source_lane(const Thread& t, unsigned lane) {
  switch (t.operation) {
    case WarpOperation::exclusive_or:
      return lane ^ t.argument;
    case WarpOperation::up:
      return lane < t.argument ? lane : lane - t.argument;
    default:
      return t.argument % kWarp;
  }
}

// All lanes of `mask` have come: gives each its result.
void finish_warp(Thread* lanes, unsigned mask) {
  const auto for_each_lane = [&](auto visit) {
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) != 0) visit(lanes[i], i);
    }
  };
  const Thread& first = lanes[std::countr_zero(mask)];
  for_each_lane([&](Thread& t, unsigned) {
    if (t.operation != first.operation)
      throw Error("different warp operations: " + describe(first) + ", " + describe(t));
  });
  for_each_lane([&](Thread& t, unsigned lane) {
    if (t.operation == WarpOperation::synchronize) return;
    if (t.operation == WarpOperation::ballot || t.operation == WarpOperation::match) {
      unsigned bits = 0;
      const std::uint64_t wanted = t.operation == WarpOperation::ballot ? 1 : t.value;
      for_each_lane([&](const Thread& other, unsigned i) { bits |= unsigned{other.value == wanted} << i; });
      t.result = bits;
      return;
    }
    const unsigned source = source_lane(t, lane);
    if (source >= kWarp || (mask >> source & 1) == 0) {
      throw Error("a shuffle reads lane " + std::to_string(source) + ", which takes no part: " + describe(t));
    }
    t.result = lanes[source].value;
  });
  for_each_lane([](Thread& t, unsigned) { grid().wake(t); });
}

// Finishes the warp operation that this thread has come to, if it was the last to come.
void check_warp(const Thread& t) {
  Grid& g = grid();
  const unsigned first = t.number / kWarp * kWarp;
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((t.mask >> i & 1) == 0) continue;
    if (first + i >= g.count) return;
    const Thread& other = g.threads[first + i];
    if (other.state != State::in_warp || other.mask != t.mask) return;
  }
  finish_warp(&g.threads[first], t.mask);
}

// No thread can go on: lets those at the barrier pass, if all are there; else says who is missing. True at the end.
bool release_barrier() {
  Grid& g = grid();
  const Thread *at_barrier = nullptr, *in_warp = nullptr, *elsewhere = nullptr;
  unsigned done = 0;
  for (const Thread& t : std::span(g.threads.data(), g.count)) {
    if (t.state == State::done) {
      ++done;
    } else if (t.state == State::in_warp) {
      in_warp = &t;
    } else if (at_barrier == nullptr) {
      at_barrier = &t;
    } else if (t.place.line() != at_barrier->place.line()) {
      elsewhere = &t;
    }
  }
  if (done == g.count) return true;
  if (g.error.empty()) {
    if (in_warp != nullptr) {
      g.error = "a warp operation is never complete: " + describe(*in_warp) +
                (at_barrier != nullptr ? ", while " + describe(*at_barrier) + " waits for its block" : "");
    } else if (done > 0) {
      g.error =
          describe(*at_barrier) + " waits for its block, of which " + std::to_string(done) + " threads have ended";
    } else if (elsewhere != nullptr) {
      g.error = "different barriers: " + describe(*at_barrier) + ", " + describe(*elsewhere);
    }
  }
  for (Thread& t : std::span(g.threads.data(), g.count)) {
    if (t.state != State::done) g.wake(t);  // to pass, or to be unwound
  }
  return false;
}

void run_ready_threads() {
  Grid& g = grid();
  while (!g.ready.empty()) {
    const unsigned choice = g.draw(g.ready.size());
    Thread& t = g.threads[g.ready[choice]];
    g.ready[choice] = g.ready.back();
    g.ready.pop_back();
    switch_to_thread(t);
    if (t.state != State::in_warp) continue;
    try {
      check_warp(t);
    } catch (const Error& error) {
      if (g.error.empty()) g.error = error.what();
    }
  }
}

void run_block() {
  Grid& g = grid();
  g.ready.clear();
  g.arrays.clear();
  g.dynamic->fill();
  for (unsigned i = 0; i < g.count; ++i) prepare(g.threads[i], i);
  release(&g.start);
  do {
    run_ready_threads();
  } while (!release_barrier());
  acquire(&g.finish);
  g.arrays.clear();
  if (!g.error.empty()) throw Error(std::exchange(g.error, {}));
}

}  // namespace

Options& options() {
  static Options one;
  return one;
}

void run(dim3 blocks, dim3 block, std::size_t shared_bytes, std::function<void()> thread) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  Grid& g = grid();
  g.count = block.x * block.y * block.z;
  if (g.count == 0 || g.count > kMaxThreads || shared_bytes > kMaxSharedBytes || blocks.y > 65535 || blocks.z > 65535) {
    throw Error("a launch of " + std::to_string(g.count) + " threads a block with " + std::to_string(shared_bytes) +
                " bytes of shared memory in " + std::to_string(blocks.x) + " x " + std::to_string(blocks.y) + " x " +
                std::to_string(blocks.z) + " blocks");
  }
  position.grid_size = blocks;
  position.block_size = block;
  g.body = std::move(thread);
  g.random = options().seed * 0x9e3779b97f4a7c15ULL | 1;
  if (g.threads.size() < g.count) g.threads.resize(g.count);
  while (g.stacks.size() < g.count) g.stacks.emplace_back();
  g.warps.resize((g.count + kWarp - 1) / kWarp);
  g.dynamic = std::make_unique<Guarded>(shared_bytes);
#if THREAD_SANITIZER
  g.fiber = __tsan_get_current_fiber();
#endif
  const std::size_t total = std::size_t{blocks.x} * blocks.y * blocks.z;
  std::vector<std::size_t> order(total);
  for (std::size_t i = 0; i < total; ++i) order[i] = i;
  for (std::size_t i = total; i > 1; --i) std::swap(order[i - 1], order[g.draw(i)]);
  for (const std::size_t i : order) {
    position.block = {static_cast<unsigned>(i % blocks.x), static_cast<unsigned>(i / blocks.x % blocks.y),
                      static_cast<unsigned>(i / blocks.x / blocks.y)};
    run_block();
  }
}

Position position;

Enqueue enqueue = [](cudaStream_t, std::function<void()> closure) { closure(); };

void wait_for_block(const Place& place) { wait(State::at_barrier, place); }

std::uint64_t wait_for_warp(WarpOperation operation, unsigned mask, std::uint64_t value, unsigned argument,
                            const Place& place) {
  Thread& t = *grid().current;
  t.place = place;
  if ((mask >> t.number % kWarp & 1) == 0) throw Error("a lane that its own mask leaves out: " + describe(t));
  t.operation = operation;
  t.mask = mask;
  t.value = value;
  t.argument = argument;
  wait(State::in_warp, place);
  return t.result;
}

void* shared_array(const void* key, std::size_t size_bytes) {
  Grid& g = grid();
  for (const Array& array : g.arrays) {
    if (array.key != key) continue;
    acquire(&g.arrays_key);
    return array.memory.data();
  }
  g.arrays.push_back({key, Guarded(size_bytes)});
  release(&g.arrays_key);
  return g.arrays.back().memory.data();
}

void* dynamic_shared() { return grid().dynamic->data(); }

}  // namespace dropcycle::emulation
