// The CUDA device over the stand-in (stand_in/stand_in.hpp): copies, arenas, errors.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/error.hpp"
#include "dropcycle/device/arena.hpp"
#include "dropcycle/device/cuda.hpp"
#include "stand_in/counters.hpp"

using namespace dropcycle;

namespace {

Device& gpu() { return cuda_device(0); }

std::vector<float> counting(std::int64_t count, float first) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

Tensor view(std::vector<float>& values) { return {values.data(), {std::ssize(values)}}; }

}  // namespace

TEST_CASE("memory is zeroed, and what is uploaded comes back") {
  CHECK(gpu().name() == "cuda");
  CHECK(!gpu().is_host());
  CHECK(&gpu() == &cuda_device(3));
  for (const std::int64_t n : {1, 1000, 5000000, 40000000}) {  // less and more than the staging ring
    const OwnedTensor x(DType::f32, {n}, gpu()), y(DType::f32, {n}, gpu());
    const HostCopy zeros(gpu(), x);
    CHECK(std::ranges::all_of(std::span(zeros.view().as<float>(), static_cast<std::size_t>(n)),
                              [](float value) { return value == 0; }));
    std::vector<float> values = counting(n, 3);
    const std::vector<float> kept = values;
    gpu().upload(x.view().data, values.data(), x.view().bytes());
    std::ranges::fill(values, -1.0F);  // may change at once
    gpu().copy(y.view().data, x.view().data, x.view().bytes());
    const HostCopy back(gpu(), y);
    CHECK(std::equal(kept.begin(), kept.end(), back.view().as<float>()));
  }
}

TEST_CASE("many small uploads keep their values whatever the GPU does when") {
  constexpr std::int64_t kUploads = 3000, kCount = 77;
  const OwnedTensor x(DType::f32, {kUploads, kCount}, gpu());
  for (std::int64_t i = 0; i < kUploads; ++i) {
    const std::vector<float> values = counting(kCount, static_cast<float>(i));
    gpu().upload(x.view().rows(i, 1).data, values.data(), kCount * 4);
  }
  const HostCopy back(gpu(), x);
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < kUploads * kCount; ++i) {
    wrong += back.view().as<float>()[i] != static_cast<float>(i / kCount + i % kCount);
  }
  CHECK(wrong == 0);
}

TEST_CASE("an arena asks for nothing after the first step") {
  Arena arena(gpu());
  std::vector<float> values = counting(300000, 1);
  std::int64_t after_first = 0;
  for (int step = 0; step < 4; ++step) {
    arena.reset();
    const Tensor x = arena.upload(view(values));
    for (int i = 0; i < 5; ++i) arena.tensor(DType::f32, {700000});
    const ArenaScope scope(arena);
    const Tensor y = arena.tensor(DType::f32, {300000});
    gpu().copy(y.data, x.data, x.bytes());
    CHECK(HostCopy(gpu(), y).view().as<float>()[299999] == 300000);
    if (step == 1) after_first = stand_in::counted().allocations;
  }
  CHECK(stand_in::counted().allocations == after_first);
}

TEST_CASE("memory that there isn't is refused in one line") {
  std::string message;
  try {
    gpu().allocate(std::int64_t{1} << 50);
  } catch (const Error& error) {
    CHECK(error.status() == Status::usage);
    message = error.what();
  }
  CHECK(message.find("1125899906842624 bytes wanted") != std::string::npos);
  CHECK(message.find("bytes free of") != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
}

TEST_CASE("streams go on in no other order than events give them") {
  const CudaStream other;
  const cudaStream_t stream = as_cuda(gpu()).stream();
  for (int turn = 0; turn < 50; ++turn) {
    const OwnedTensor x(DType::f32, {1000}, gpu()), y(DType::f32, {1000}, gpu());
    std::vector<float> values = counting(1000, static_cast<float>(turn));
    CudaEvent written, copied;
    gpu().upload(x.view().data, values.data(), 4000);
    written.record(stream);
    written.make_wait(other.get());
    check_cuda(cudaMemcpyAsync(y.view().data, x.view().data, 4000, cudaMemcpyDeviceToDevice, other.get()), "copy");
    copied.record(other.get());
    copied.make_wait(stream);
    CHECK(HostCopy(gpu(), y).view().as<float>()[999] == static_cast<float>(turn + 999));
    CHECK(copied.reached());
  }
}
