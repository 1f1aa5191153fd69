#include "dropcycle/device/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace dropcycle {
namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kHugePage = 2 << 20;
constexpr std::int64_t kLeastBlock = 4 << 20;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

Buffer::Buffer(std::int64_t size_bytes) : size_bytes_(size_bytes) {
  const std::int64_t alignment = size_bytes >= kHugePage ? kHugePage : kAlignment;
  const auto rounded = static_cast<std::size_t>(round_up(std::max<std::int64_t>(size_bytes, 1), alignment));
  void* memory = std::aligned_alloc(static_cast<std::size_t>(alignment), rounded);
  if (memory == nullptr) throw std::bad_alloc();
  // Large: pages that were let go come back as zeros when they are first touched, by the threads that compute with
  // them. One thread would take as long for it as for the rest of a short run's start.
  const bool pages = alignment == kHugePage && madvise(memory, rounded, MADV_DONTNEED) == 0;
  if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
  if (!pages) std::memset(memory, 0, rounded);
  memory_.reset(static_cast<std::byte*>(memory));
}

void Buffer::Release::operator()(std::byte* pointer) const { std::free(pointer); }

OwnedTensor::OwnedTensor(DType dtype, const Shape& shape)
    : buffer_(shape.elements() * dropcycle::size_bytes(dtype)), view_(buffer_.data(), dtype, shape) {}

Tensor Arena::tensor(DType dtype, const Shape& shape) {
  return {allocate(shape.elements() * size_bytes(dtype)), dtype, shape};
}

void* Arena::allocate(std::int64_t size_bytes) {
  const std::int64_t size = round_up(std::max<std::int64_t>(size_bytes, 1), kAlignment);
  while (current_ < blocks_.size() && blocks_[current_].used + size > blocks_[current_].memory.size_bytes()) ++current_;
  if (current_ == blocks_.size()) {
    blocks_.push_back({Buffer(std::max(size, kLeastBlock)), 0});
    ++system_allocations_;
  }
  Block& block = blocks_[current_];
  void* result = block.memory.data() + block.used;
  block.used += size;
  peak_bytes_ = std::max(peak_bytes_, used_bytes());
  return result;
}

void Arena::reset() {
  if (blocks_.size() > 1) {
    std::int64_t total = 0;
    for (const Block& block : blocks_) total += block.memory.size_bytes();
    blocks_.clear();
    blocks_.push_back({Buffer(total), 0});
    ++system_allocations_;
  }
  for (Block& block : blocks_) block.used = 0;
  current_ = 0;
}

std::int64_t Arena::used_bytes() const {
  std::int64_t total = 0;
  for (const Block& block : blocks_) total += block.used;
  return total;
}

ArenaScope::ArenaScope(Arena& arena)
    : arena_(arena),
      block_(arena.current_),
      used_(arena.current_ < arena.blocks_.size() ? arena.blocks_[arena.current_].used : 0) {}

ArenaScope::~ArenaScope() {
  for (std::size_t i = block_ + 1; i < arena_.blocks_.size(); ++i) arena_.blocks_[i].used = 0;
  if (block_ < arena_.blocks_.size()) arena_.blocks_[block_].used = used_;
  arena_.current_ = block_;
}

}  // namespace dropcycle
