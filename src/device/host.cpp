#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "dropcycle/device/device.hpp"

namespace dropcycle {
namespace {

constexpr std::size_t kSmallAlignment = 256, kHugePage = 2 << 20;

// Memory aligned to 2 MiB pages where large (transparent huge pages are asked for).
class HostDevice final : public Device {
 public:
  std::string_view name() const override { return "cpu"; }
  bool is_host() const override { return true; }
  void* allocate(std::int64_t size_bytes) override {
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(size_bytes, 1));
    const std::size_t alignment = size >= kHugePage ? kHugePage : kSmallAlignment;
    const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    // Large: pages that were let go come back as zeros when they are first touched, by the threads that compute with
    // them. One thread would take as long for it as for the rest of a short run's start.
    const bool pages = alignment == kHugePage && madvise(memory, rounded, MADV_DONTNEED) == 0;
    if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
    if (!pages) std::memset(memory, 0, rounded);
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

Device& host_device() {
  static HostDevice& device = *new HostDevice;  // never destroyed: static objects give their memory back to it
  return device;
}

}  // namespace dropcycle
