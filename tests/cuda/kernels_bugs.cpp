// Does the emulation of kernels (emulation/emulation.hpp) see what it is there to see? Bugs that a kernel can have,
// each run in a process of its own, and what this build of the program must say about it. Built plain, with
// AddressSanitizer and with ThreadSanitizer.
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../src/ops/cuda/kernels/values.cuh"

namespace dropcycle::cuda::kernels {

enum class Bug {
  none,
  no_syncthreads,
  no_syncwarp,
  shared_beyond_end,
  global_beyond_end,
  unaligned,
  return_before_barrier,
  half_a_warp,
  lane_that_takes_no_part,
  too_many_threads,
};

// out[row] = Σ x[row]; a block a row.
template <Bug kBug>
__global__ void sum_row(const float* x, float* out, int width) {
  SHARED_ARRAY(float, parts, kWarp);
  float sum = 0;
  if (kBug == Bug::return_before_barrier && threadIdx.x >= 64) return;
  const int end = kBug == Bug::global_beyond_end ? width + 1 : width;
  for (int i = static_cast<int>(threadIdx.x); i < end; i += static_cast<int>(blockDim.x)) {
    sum += x[static_cast<int>(blockIdx.x) * width + i];
  }
  sum = warp_sum(sum);
  const unsigned shift = kBug == Bug::shared_beyond_end ? kWarp : 0;
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp + shift] = sum;  // written in shared memory
  if (kBug != Bug::no_syncthreads) __syncthreads();
  if (threadIdx.x != 0) return;
  float total = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) total += parts[warp + shift];
  out[blockIdx.x] = total;
}

// out[i] = x[31 - i] by way of shared memory; one warp.
template <Bug kBug>
__global__ void reverse(const float* x, float* out) {
  DYNAMIC_SHARED(float, values);
  const unsigned lane = threadIdx.x;
  values[lane] = x[lane];
  if (kBug != Bug::no_syncwarp) __syncwarp();
  float value = values[kWarp - 1 - lane];
  if (kBug == Bug::half_a_warp && lane < 16) value += static_cast<float>(__ballot_sync(kAllLanes, 1));
  if (kBug == Bug::lane_that_takes_no_part && lane < 16) value += __shfl_xor_sync(0xffffU, value, 16);
  out[lane] = value;
}

template <Bug kBug>
__global__ void copy_pack(const float* x, float* out) {
  store(out, load<4>(x + (kBug == Bug::unaligned ? 1 : 0)));
}

}  // namespace dropcycle::cuda::kernels

namespace {

using namespace dropcycle::cuda;
using kernels::Bug;

constexpr int kRows = 3, kWidth = 300;

// The sums of rows of ones with the kernel, in several orders of threads; whether any was wrong.
template <Bug kBug>
bool sums_are_wrong() {
  bool wrong = false;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    dropcycle::emulation::options().seed = seed;
    const std::vector<float> x(std::size_t{kRows} * kWidth, 1.0F);
    std::vector<float> out(kRows);
    launch(kernels::sum_row<kBug>, kRows, kBug == Bug::too_many_threads ? 2048 : 256, 0, nullptr, x.data(), out.data(),
           kWidth);
    for (const float sum : out) wrong = wrong || !(sum == kWidth);
  }
  return wrong;
}

template <Bug kBug>
bool reversal_is_wrong() {
  bool wrong = false;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    dropcycle::emulation::options().seed = seed;
    std::vector<float> x(kWarp), out(kWarp);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
    launch(kernels::reverse<kBug>, 1, kWarp, kWarp * sizeof(float), nullptr, x.data(), out.data());
    for (std::size_t i = 0; i < x.size(); ++i) wrong = wrong || !(out[i] == x[x.size() - 1 - i]);
  }
  return wrong;
}

template <Bug kBug>
bool copy_is_wrong() {
  alignas(16) std::array<float, 8> x{1, 1, 1, 1, 1, 1, 1, 1};
  alignas(16) std::array<float, 4> out{};
  launch(kernels::copy_pack<kBug>, 1, 1, 0, nullptr, x.data(), out.data());
  return !(out[0] == 1);
}

struct Verdict {
  int status = 0;  // of the process: 0 where nothing was noticed
  std::string text;
};

// Runs it in a process of its own: exit status 3 for a wrong result, 4 for an error of the emulation; a sanitizer has
// its own.
Verdict verdict_on(bool (*run)()) {
  std::fflush(stdout);
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    try {
      std::exit(run() ? 3 : 0);
    } catch (const dropcycle::emulation::Error& error) {
      std::fprintf(stderr, "emulation: %s\n", error.what());
      std::exit(4);
    }
  }
  close(ends[1]);
  Verdict verdict;
  char piece[4096];
  for (ssize_t n = 0; (n = read(ends[0], piece, sizeof piece)) > 0;) {
    verdict.text.append(piece, static_cast<std::size_t>(n));
  }
  close(ends[0]);
  waitpid(child, &verdict.status, 0);
  return verdict;
}

#if defined(__SANITIZE_ADDRESS__)
constexpr int kBuild = 1;
#elif defined(__SANITIZE_THREAD__)
constexpr int kBuild = 2;
#else
constexpr int kBuild = 0;
#endif
constexpr const char* kBuildNames[] = {"plain", "address sanitizer", "thread sanitizer"};

// What each build must print; nullptr: it may or may not notice; "": it notices nothing; "*": anything but nothing.
struct Expectation {
  const char* name;
  bool (*run)();
  const char* found[3];
};

const Expectation kExpectations[] = {
    {"no bug in sum_row", sums_are_wrong<Bug::none>, {"", "", ""}},
    {"no bug in reverse", reversal_is_wrong<Bug::none>, {"", "", ""}},
    {"no bug in copy_pack", copy_is_wrong<Bug::none>, {"", "", ""}},
    {"__syncthreads removed", sums_are_wrong<Bug::no_syncthreads>, {"*", "*", "data race"}},
    {"__syncwarp removed", reversal_is_wrong<Bug::no_syncwarp>, {nullptr, nullptr, "data race"}},
    {"shared memory beyond its end", sums_are_wrong<Bug::shared_beyond_end>, {nullptr, "use-after-poison", nullptr}},
    {"global memory beyond its end",
     sums_are_wrong<Bug::global_beyond_end>,
     {nullptr, "heap-buffer-overflow", nullptr}},
    {"a pack that isn't aligned", copy_is_wrong<Bug::unaligned>, {nullptr, "misaligned address", nullptr}},
    {"return before a barrier",
     sums_are_wrong<Bug::return_before_barrier>,
     {"waits for its block", "waits for its block", "waits for its block"}},
    {"ballot of half a warp",
     reversal_is_wrong<Bug::half_a_warp>,
     {"never complete", "never complete", "never complete"}},
    {"shuffle from a lane that takes no part",
     reversal_is_wrong<Bug::lane_that_takes_no_part>,
     {"takes no part", "takes no part", "takes no part"}},
    {"too many threads", sums_are_wrong<Bug::too_many_threads>, {"a launch of", "a launch of", "a launch of"}},
};

// Whether a line of the kernels is named, of this file or of what it includes.
bool names_line(const std::string& text) {
  return text.find("kernels_bugs.cpp:") != std::string::npos || text.find("values.cuh:") != std::string::npos;
}

}  // namespace

int main() {
  int failures = 0;
  for (const Expectation& e : kExpectations) {
    const Verdict verdict = verdict_on(e.run);
    const char* want = e.found[kBuild];
    const bool noticed = verdict.status != 0;
    const std::string text(want == nullptr ? "" : want);
    bool good = true;
    if (want != nullptr && text.empty()) {
      good = !noticed;
    } else if (want != nullptr) {
      good = noticed && (text == "*" || verdict.text.find(text) != std::string::npos);
      if (kBuild > 0 && text != "*" && text != "a launch of") good = good && names_line(verdict.text);
    }
    std::printf("%s: %s: %s%s\n", kBuildNames[kBuild], e.name, noticed ? "noticed" : "not noticed",
                good ? "" : "  <- WRONG");
    if (!good) std::printf("  expected '%s', got:\n%s\n", text.c_str(), verdict.text.c_str());
    failures += good ? 0 : 1;
  }
  return failures == 0 ? 0 : 1;
}
