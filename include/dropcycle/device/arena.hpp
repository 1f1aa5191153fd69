// Memory: aligned buffers, and arenas from which layers take their activations.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "dropcycle/core/tensor.hpp"
#include "dropcycle/device/device.hpp"

namespace dropcycle {

struct DeviceRelease {
  Device* device = nullptr;
  void operator()(std::byte* memory) const { device->release(memory); }
};

// Owned memory of a device, zeroed at birth. The device outlives it.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size_bytes, Device& device = host_device());
  std::byte* data() const { return memory_.get(); }
  std::int64_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<std::byte[], DeviceRelease> memory_;
  std::int64_t size_bytes_ = 0;
};

// A tensor with its memory.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(DType dtype, const Shape& shape, Device& device = host_device());
  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

 private:
  Buffer buffer_;
  Tensor view_;
};

// Bump allocator. It grows by whole blocks while a step is new to it; reset() merges the blocks into one, so that a
// repeated step allocates nothing. Where memory of others was lent to it, tensors lie there first. Contents of fresh
// tensors are unspecified.
class Arena {
 public:
  explicit Arena(Device& device = host_device()) : device_(device) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Device& device() const { return device_; }
  Tensor tensor(DType dtype, const Shape& shape);
  // The host's values, or their copy in this arena's memory where the device has its own; `values` outlives the use.
  Tensor upload(const Tensor& values);
  void* allocate(std::int64_t size_bytes);
  template <class T>
  T* array(std::int64_t count) {
    return static_cast<T*>(allocate(count * static_cast<std::int64_t>(sizeof(T))));
  }
  // Until reset(), tensors may lie in the first size_bytes of `memory`. A lender may lend the same memory again, more
  // of it or, for no further tensors, none.
  void borrow(std::size_t lender, std::byte* memory, std::int64_t size_bytes);
  static constexpr std::size_t kLenders = 2;
  // Forgets all tensors, gives back what was lent and keeps its own memory.
  void reset();
  // Of its own memory.
  std::int64_t used_bytes() const;
  std::int64_t peak_bytes() const { return peak_bytes_; }
  // Number of times that memory was asked from the system: constant once the steps are alike.
  std::int64_t system_allocations() const { return system_allocations_; }

 private:
  friend class ArenaMark;
  struct Block {
    Buffer memory;
    std::int64_t used = 0;
  };
  struct Lent {
    std::byte* memory = nullptr;
    std::int64_t size = 0, used = 0;
  };
  Device& device_;
  std::array<Lent, kLenders> lent_;
  std::vector<Block> blocks_;
  std::size_t current_ = 0;
  std::int64_t peak_bytes_ = 0;
  std::int64_t system_allocations_ = 0;
};

// What a device's tensor holds, for the host to read: the tensor itself where the host may read it, else a copy.
class HostCopy {
 public:
  HostCopy(Device& device, const Tensor& x);
  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

 private:
  Buffer memory_;
  Tensor view_;
};

// How far an arena is filled. While nothing that was taken before is given back, restore() gives back what was taken
// since.
class ArenaMark {
 public:
  explicit ArenaMark(Arena& arena);
  void restore() const;

 private:
  Arena& arena_;
  std::size_t block_;
  std::int64_t used_;
  std::array<Arena::Lent, Arena::kLenders> lent_;
};

// Gives back at the end of the scope what was taken from the arena inside it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : mark_(arena) {}
  ~ArenaScope() { mark_.restore(); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  ArenaMark mark_;
};

}  // namespace dropcycle
