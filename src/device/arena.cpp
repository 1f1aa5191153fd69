#include "dropcycle/device/arena.hpp"

#include <algorithm>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kAlignment = 256;  // of the widest loads and of a GPU's products
constexpr std::int64_t kLeastBlock = 4 << 20;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

Buffer::Buffer(std::int64_t size_bytes, Device& device)
    : memory_(static_cast<std::byte*>(device.allocate(size_bytes)), DeviceRelease{&device}), size_bytes_(size_bytes) {}

OwnedTensor::OwnedTensor(DType dtype, const Shape& shape, Device& device)
    : buffer_(shape.elements() * dropcycle::size_bytes(dtype), device), view_(buffer_.data(), dtype, shape) {}

HostCopy::HostCopy(Device& device, const Tensor& x) : view_(x) {
  if (device.is_host()) return;
  memory_ = Buffer(x.bytes());
  view_.data = memory_.data();
  device.download(view_.data, x.data, x.bytes());
}

Tensor Arena::tensor(DType dtype, const Shape& shape) {
  return {allocate(shape.elements() * size_bytes(dtype)), dtype, shape};
}

Tensor Arena::upload(const Tensor& values) {
  if (device_.is_host()) return values;
  const Tensor copy = tensor(values.dtype, values.shape);
  device_.upload(copy.data, values.data, values.bytes());
  return copy;
}

void* Arena::allocate(std::int64_t size_bytes) {
  const std::int64_t size = round_up(std::max<std::int64_t>(size_bytes, 1), kAlignment);
  for (Lent& lent : lent_) {
    if (lent.used + size > lent.size) continue;
    lent.used += size;
    return lent.memory + lent.used - size;
  }
  while (current_ < blocks_.size() && blocks_[current_].used + size > blocks_[current_].memory.size_bytes()) ++current_;
  if (current_ == blocks_.size()) {
    blocks_.push_back({Buffer(std::max(size, kLeastBlock), device_), 0});
    ++system_allocations_;
  }
  Block& block = blocks_[current_];
  void* result = block.memory.data() + block.used;
  block.used += size;
  peak_bytes_ = std::max(peak_bytes_, used_bytes());
  return result;
}

void Arena::borrow(std::size_t lender, std::byte* memory, std::int64_t size_bytes) {
  Lent& lent = lent_[lender];
  require(lent.used == 0 || lent.memory == memory, "tensors lie in what lender {} lent before", lender);
  lent.memory = memory;
  lent.size = size_bytes;
}

void Arena::reset() {
  lent_ = {};
  if (blocks_.size() > 1) {
    std::int64_t total = 0;
    for (const Block& block : blocks_) total += block.memory.size_bytes();
    blocks_.clear();
    blocks_.push_back({Buffer(total, device_), 0});
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

ArenaMark::ArenaMark(Arena& arena)
    : arena_(arena),
      block_(arena.current_),
      used_(arena.current_ < arena.blocks_.size() ? arena.blocks_[arena.current_].used : 0),
      lent_(arena.lent_) {}

void ArenaMark::restore() const {
  for (std::size_t i = block_ + 1; i < arena_.blocks_.size(); ++i) arena_.blocks_[i].used = 0;
  if (block_ < arena_.blocks_.size()) arena_.blocks_[block_].used = used_;
  arena_.current_ = block_;
  arena_.lent_ = lent_;
}

}  // namespace dropcycle
