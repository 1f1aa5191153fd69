#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <thread>

#include "dropcycle/core/error.hpp"
#include "dropcycle/device/cuda.hpp"
#include "staging.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kStagingBytes = 64 << 20;
constexpr double kGiB = 1 << 30;

// Binds the process to the GPU.
void choose_gpu(int local_rank) {
  // Streams that share one of the driver's queues (8 unless told otherwise) wait for each other: a message that is not
  // yet received could hold up the one that it depends on.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  int count = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&count); result != cudaSuccess) {
    fail(Status::usage, "no CUDA device: {} ({}); use device.backend = \"cpu\"", cudaGetErrorString(result),
         static_cast<int>(result));
  }
  // A launcher may show each process its own GPU only.
  const int number = count == 1 ? 0 : local_rank;
  if (number >= count) {
    fail(Status::usage,
         "no CUDA device for the process with number {} on this node, which shows {} (numbers from 0): start one "
         "process a GPU",
         local_rank, count);
  }
  check_cuda(cudaSetDevice(number), "cudaSetDevice");
  // What is given back stays this process's.
  cudaMemPool_t pool = nullptr;
  std::uint64_t kept_bytes = std::numeric_limits<std::uint64_t>::max();
  check_cuda(cudaDeviceGetDefaultMemPool(&pool, number), "cudaDeviceGetDefaultMemPool");
  check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept_bytes), "cudaMemPoolSetAttribute");
}

class Gpu final : public CudaDevice {
 public:
  Gpu() : staging_(kStagingBytes, [this](const CudaEvent& event) { wait(event); }) {}
  std::string_view name() const override { return "cuda"; }
  bool is_host() const override { return false; }
  cudaStream_t stream() const override { return stream_.get(); }
  void set_watch(std::function<void()> look) override { watch_ = std::move(look); }

  void* allocate(std::int64_t size_bytes) override {
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(size_bytes, 1));
    void* memory = nullptr;
    const cudaError_t result = cudaMallocAsync(&memory, size, stream());
    if (result == cudaErrorMemoryAllocation) refuse(size);
    check_cuda(result, "cudaMallocAsync");
    check_cuda(cudaMemsetAsync(memory, 0, size, stream()), "cudaMemsetAsync");
    return memory;
  }
  // In the order of the stream. cudaFree would wait for the whole GPU, messages under way included, which another rank
  // may only receive once this one goes on.
  void release(void* memory) noexcept override {
    if (memory != nullptr) cudaFreeAsync(memory, stream());
  }

  void upload(void* to, const void* from, std::int64_t size_bytes) override {
    for (std::int64_t first = 0; first < size_bytes; first += staging_.most_bytes()) {
      const std::int64_t count = std::min(staging_.most_bytes(), size_bytes - first);
      std::byte* const part = staging_.take(count);
      std::memcpy(part, static_cast<const std::byte*>(from) + first, static_cast<std::size_t>(count));
      copy_async(static_cast<std::byte*>(to) + first, part, count, cudaMemcpyHostToDevice);
      staging_.in_use_by(stream());
    }
  }

  // The next part travels while one is taken out of the ring.
  void download(void* to, const void* from, std::int64_t size_bytes) override {
    struct Part {
      std::int64_t first, count;
      const std::byte* memory;
      std::int64_t point;
    };
    std::deque<Part> parts;
    for (std::int64_t first = 0; first < size_bytes || !parts.empty();) {
      if (first < size_bytes && parts.size() < 2) {
        const std::int64_t count = std::min(staging_.most_bytes(), size_bytes - first);
        std::byte* const memory = staging_.take(count);
        copy_async(memory, static_cast<const std::byte*>(from) + first, count, cudaMemcpyDeviceToHost);
        parts.push_back({first, count, memory, staging_.in_use_by(stream())});
        first += count;
        continue;
      }
      const Part& part = parts.front();
      staging_.wait_until(part.point);
      std::memcpy(static_cast<std::byte*>(to) + part.first, part.memory, static_cast<std::size_t>(part.count));
      parts.pop_front();
    }
  }

  void copy(void* to, const void* from, std::int64_t size_bytes) override {
    if (size_bytes > 0) copy_async(to, from, size_bytes, cudaMemcpyDeviceToDevice);
  }

  void synchronize() override {
    end_.record(stream());
    wait(end_);
    check_cuda(cudaDeviceSynchronize(), "the GPU's work");
  }

 private:
  void wait(const CudaEvent& event) const {
    constexpr int kTurnsToLook = 1000;
    for (int turn = 1; !event.reached(); ++turn) {
      if (turn % kTurnsToLook == 0 && watch_) watch_();
      std::this_thread::yield();
    }
  }
  void copy_async(void* to, const void* from, std::int64_t size_bytes, cudaMemcpyKind kind) const {
    check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(size_bytes), kind, stream()), "cudaMemcpyAsync");
  }
  [[noreturn]] static void refuse(std::size_t size) {
    cudaGetLastError();  // the refusal itself: nothing is broken
    std::size_t free = 0, total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    fail(
        Status::usage,
        "too little memory on the GPU: {} bytes wanted, {} bytes free of {:.1f} GiB: take a smaller train.micro_batch, "
        "more recomputation, or more GPUs (dropcycle plan counts what a rank holds)",
        size, free, static_cast<double>(total) / kGiB);
  }

  CudaStream stream_;
  CudaEvent end_;
  std::function<void()> watch_;
  StagingRing staging_;
};

}  // namespace

Device& cuda_device(int local_rank) {
  static const std::unique_ptr<Gpu> gpu = [local_rank] {
    choose_gpu(local_rank);
    return std::make_unique<Gpu>();
  }();
  return *gpu;
}

CudaDevice& as_cuda(Device& device) {
  auto* const cuda = dynamic_cast<CudaDevice*>(&device);
  require(cuda != nullptr, "device {} where a GPU was expected", device.name());
  return *cuda;
}

}  // namespace dropcycle
