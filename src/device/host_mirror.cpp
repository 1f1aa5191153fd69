#include "dropcycle/device/host_mirror.hpp"

namespace dropcycle {

HostMirror::HostMirror(Device& device, std::vector<ShardedTensor> parts) : device_(device), parts_(std::move(parts)) {
  if (device.is_host()) return;
  constexpr std::int64_t kAligned = 64;
  std::int64_t bytes = 0;
  for (ShardedTensor& part : parts_) {
    places_.push_back(part.local.data);
    bytes += (part.local.bytes() + kAligned - 1) / kAligned * kAligned;
  }
  memory_ = Buffer(bytes);
  std::byte* next = memory_.data();
  for (ShardedTensor& part : parts_) {
    part.local.data = next;
    next += (part.local.bytes() + kAligned - 1) / kAligned * kAligned;
  }
}

void HostMirror::download() {
  for (std::size_t i = 0; i < places_.size(); ++i) {
    device_.download(parts_[i].local.data, places_[i], parts_[i].local.bytes());
  }
}

void HostMirror::upload() {
  for (std::size_t i = 0; i < places_.size(); ++i) {
    device_.upload(places_[i], parts_[i].local.data, parts_[i].local.bytes());
  }
}

}  // namespace dropcycle
