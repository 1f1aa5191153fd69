// Host memory for parts of tensors that live on a device.
#pragma once

#include <vector>

#include "dropcycle/core/sharded.hpp"
#include "dropcycle/device/arena.hpp"

namespace dropcycle {

// What files and initialisation read and write: where the host may read the device's memory the tensors themselves,
// else as much memory of the host's, which download() and upload() bring in line. The tensors outlive it.
class HostMirror {
 public:
  HostMirror(Device& device, std::vector<ShardedTensor> parts);
  // In the order given, in the host's memory; what they hold is unspecified before the first download().
  const std::vector<ShardedTensor>& parts() const { return parts_; }
  // Host = device.
  void download();
  // Device = host.
  void upload();

 private:
  Device& device_;
  std::vector<ShardedTensor> parts_;
  std::vector<void*> places_;  // of the parts on the device; empty where the parts are there
  Buffer memory_;
};

}  // namespace dropcycle
