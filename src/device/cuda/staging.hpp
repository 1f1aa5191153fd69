// Host memory that the GPU copies from and to by itself, for the .cpp files of this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "dropcycle/device/cuda.hpp"

namespace dropcycle {

// A ring of pinned memory. Parts are taken and used in order on one stream.
class StagingRing {
 public:
  // wait(event): returns when the event is reached.
  using Wait = std::function<void(const CudaEvent&)>;
  StagingRing(std::int64_t size_bytes, Wait wait);
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;
  ~StagingRing();
  // Most bytes of one part.
  std::int64_t most_bytes() const { return size_bytes_ / 4; }
  // Waits for what used this memory last.
  std::byte* take(std::int64_t size_bytes);
  // The part taken last is in use until what `stream` was asked for up to now is done. Returns that point's number.
  std::int64_t in_use_by(cudaStream_t stream);
  // Returns when the point is reached.
  void wait_until(std::int64_t point);

 private:
  struct Busy {
    std::int64_t first, last;
    CudaEvent done;
  };
  void free_oldest();

  Wait wait_;
  std::int64_t size_bytes_, first_ = 0, last_ = 0;  // the part taken last
  std::byte* memory_ = nullptr;
  std::deque<Busy> busy_;   // oldest first
  std::int64_t freed_ = 0;  // points before busy_.front()'s
  std::vector<CudaEvent> events_;
};

}  // namespace dropcycle
