// Bytes that kernels move through device memory, where they were compiled to say what they touch
// (dropcycle_emulated_kernels(... COUNTED): g++ calls these functions before every access). A kernel reads and writes a
// sector of 32 bytes once, whatever part of it; what it has written itself it doesn't read from memory.
#include <sys/mman.h>

#include <cstring>

#include "stand_in.hpp"

namespace stand_in {
namespace {

constexpr std::size_t kSector = 32, kSectors = kDeviceSpace / kSector;

// By sector, the number of the last kernel that read or wrote it.
std::uint32_t* sectors() {
  void* const place = mmap(nullptr, kSectors * sizeof(std::uint32_t), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  demand(place != MAP_FAILED, "no memory to count sectors in: {}", std::strerror(errno));
  return static_cast<std::uint32_t*>(place);
}

std::uint32_t kernel_number = 0;

void touch(const void* address, std::size_t bytes, bool writes) {
  static std::uint32_t* const readers = sectors();
  static std::uint32_t* const writers = sectors();
  const auto first = static_cast<std::size_t>(static_cast<const std::byte*>(address) - memory_base());
  if (first >= kDeviceSpace || bytes == 0) return;  // the host's: shared memory, stacks
  for (std::size_t sector = first / kSector; sector <= (first + bytes - 1) / kSector; ++sector) {
    if (writers[sector] == kernel_number || (!writes && readers[sector] == kernel_number)) continue;
    (writes ? writers : readers)[sector] = kernel_number;
    counters().kernel_bytes += kSector;
  }
}

}  // namespace

void begin_kernel() { ++kernel_number; }

}  // namespace stand_in

extern "C" {

#define TOUCH(bytes)                                                                                 \
  void __asan_load##bytes##_noabort(const void* address) { stand_in::touch(address, bytes, false); } \
  void __asan_store##bytes##_noabort(const void* address) { stand_in::touch(address, bytes, true); }
TOUCH(1)
TOUCH(2)
TOUCH(4)
TOUCH(8)
TOUCH(16)
#undef TOUCH
void __asan_loadN_noabort(const void* address, std::size_t bytes) { stand_in::touch(address, bytes, false); }
void __asan_storeN_noabort(const void* address, std::size_t bytes) { stand_in::touch(address, bytes, true); }
void __asan_handle_no_return() {}

}  // extern "C"
