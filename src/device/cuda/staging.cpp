#include "staging.hpp"

#include <utility>

#include "dropcycle/core/error.hpp"

namespace dropcycle {

StagingRing::StagingRing(std::int64_t size_bytes, Wait wait) : wait_(std::move(wait)), size_bytes_(size_bytes) {
  void* memory = nullptr;
  check_cuda(cudaMallocHost(&memory, static_cast<std::size_t>(size_bytes)), "cudaMallocHost");
  memory_ = static_cast<std::byte*>(memory);
}

StagingRing::~StagingRing() { cudaFreeHost(memory_); }

std::byte* StagingRing::take(std::int64_t size_bytes) {
  constexpr std::int64_t kAlignment = 256;
  require(0 < size_bytes && size_bytes <= most_bytes(), "{} bytes of a staging ring of {}", size_bytes, size_bytes_);
  const std::int64_t size = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
  first_ = last_ + size > size_bytes_ ? 0 : last_;
  last_ = first_ + size;
  const auto overlaps = [&](const Busy& part) { return part.first < last_ && first_ < part.last; };
  while (!busy_.empty() && (overlaps(busy_.front()) || busy_.front().done.reached())) free_oldest();
  return memory_ + first_;
}

std::int64_t StagingRing::in_use_by(cudaStream_t stream) {
  if (events_.empty()) events_.emplace_back();
  events_.back().record(stream);
  busy_.push_back({first_, last_, std::move(events_.back())});
  events_.pop_back();
  return freed_ + std::ssize(busy_) - 1;
}

void StagingRing::wait_until(std::int64_t point) {
  while (freed_ <= point) free_oldest();
}

void StagingRing::free_oldest() {
  wait_(busy_.front().done);
  events_.push_back(std::move(busy_.front().done));
  busy_.pop_front();
  ++freed_;
}

}  // namespace dropcycle
