// The most memory that this process has held (Linux: VmHWM).
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace dropcycle::bench {

inline std::int64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return kilobytes << 10;
  }
  return 0;
}

// From here on, the peak is that of what comes.
inline void forget_peak_memory() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace dropcycle::bench
