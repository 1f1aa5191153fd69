#include "emulated_ops.hpp"

#include <emulation.hpp>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "../unit/ops_support.hpp"

namespace dropcycle::test {
namespace {

class ExactDevice final : public Device {
 public:
  std::string_view name() const override { return "cuda"; }
  bool is_host() const override { return true; }
  void* allocate(std::int64_t size_bytes) override {
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(size_bytes, 1));
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, size) != 0) throw std::bad_alloc();
    std::memset(memory, 0, size);
    return memory;
  }
  void release(void* memory) noexcept override { std::free(memory); }
  void upload(void* to, const void* from, std::int64_t size_bytes) override { copy(to, from, size_bytes); }
  void download(void* to, const void* from, std::int64_t size_bytes) override { copy(to, from, size_bytes); }
  void copy(void* to, const void* from, std::int64_t size_bytes) override {
    if (size_bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(size_bytes));
  }
  void synchronize() override {}
};

}  // namespace

Device& exact_device() {
  static ExactDevice device;
  return device;
}

Ops& tested_ops() {
  static EmulatedOps ops;
  return ops;
}

// Threads and blocks in two random orders.
void in_way(int way, const std::function<void()>& body) {
  emulation::options().seed = way == 0 ? 1 : 0x5eed;
  body();
}

}  // namespace dropcycle::test
