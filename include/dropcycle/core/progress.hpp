// Progress of long work on standard error: a line that is rewritten on a terminal, a line every ten seconds elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace dropcycle {

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  Progress();
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  // Whether it is time for another line.
  bool due() const;
  void show(const std::string& text);
  // Removes the line from a terminal.
  void clear();
  // "upcycling  45 %  3.2 of 7.1 GB  0.53 GB/s  7 s left", where it is time for it.
  void show_bytes(const char* work, std::uint64_t done, std::uint64_t all);

 private:
  bool terminal_, dirty_ = false;
  Clock::time_point start_ = Clock::now(), shown_ = start_;
};

}  // namespace dropcycle
