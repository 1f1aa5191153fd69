// A library with the names of the CUDA runtime, cuBLAS, cuDNN and NCCL that computes on the processor, so that the
// whole backend runs where there is no GPU. It is stricter than the real ones: what they leave undefined ends the
// process with a line that begins with "CUDA stand-in:".
//
// - A stream is a queue. Nothing runs before the host waits or asks; then streams run in random order, restrained by
//   their own order and by events only. DROPCYCLE_STAND_IN_SEED chooses the order (printed where something fails).
// - Device memory is not readable: pages open while work runs and close again. Freed memory is never handed out again.
//   The processes of a job see each other's, which is how NCCL's data travels.
// - While the host stands still elsewhere (in MPI), a thread lets the streams go on, as a GPU would.
//
// This header is for the sources of this folder; tests read counters.hpp.
#pragma once

#include <driver_types.h>
#include <fmt/format.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include "counters.hpp"

namespace stand_in {

// One line on standard error, and the end of the process.
[[noreturn]] void die(std::string_view message);
template <class... Arguments>
void demand(bool condition, fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  if (!condition) die(fmt::format(format, std::forward<Arguments>(arguments)...));
}

// Every entry point holds it.
class Entry {
 public:
  Entry();
  ~Entry();
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;
};

// ---- Streams.

// Lets `run` be called when the stream comes to it, again and again until it returns true. `what` is for messages.
void enqueue(cudaStream_t stream, std::string what, std::function<bool()> run);
bool is_recording(cudaStream_t stream);
// The same for work that ends at once.
template <class F>
void enqueue_once(cudaStream_t stream, std::string what, F work) {
  enqueue(stream, std::move(what), [work] {
    work();
    return true;
  });
}
// Runs streams in random order until the condition holds. Two minutes without progress are an error.
void run_until(const std::function<bool()>& condition, std::string_view waiting_for);
void run_everything(std::string_view waiting_for);
// Gives the processor to others while another process is waited for; false after the patience.
class Patience {
 public:
  bool wait();

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// ---- Memory.

// The range lies within one live allocation of device memory, else dies naming `what`. What runs may use memory that is
// given back behind it.
enum class Use : std::uint8_t { asked_for, runs };
void check_device(const void* memory, std::size_t bytes, std::string_view what, Use at);
// Within pinned host memory.
bool is_pinned(const void* memory, std::size_t bytes);
// Open while it lives: work that runs may touch device memory.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;
};
// Of this process's device memory: addresses, where it begins, and the file behind it.
inline constexpr std::size_t kDeviceSpace = std::size_t{1} << 40;
std::byte* memory_base();
int memory_file();
// Another process's device memory, to read.
const std::byte* memory_of_process(int process, int file);

// A kernel runs from here on (traffic.cpp).
void begin_kernel();

std::uint64_t seed();
std::uint64_t random_below(std::uint64_t bound);
Counters& counters();

}  // namespace stand_in
