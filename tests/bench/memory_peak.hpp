// The most memory that this process has held, without the pages of program files (Linux: VmHWM less RssFile).
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace dropcycle::bench {

inline std::int64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  std::int64_t peak = 0, files = 0;
  for (std::string word; status >> word;) {
    if (word == "VmHWM:") status >> peak;
    if (word == "RssFile:") status >> files;
  }
  return (peak - files) << 10;
}

// From here on, the peak is that of what comes.
inline void forget_peak_memory() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace dropcycle::bench
