// Progress of long work on standard error: one line that is rewritten on a terminal, a line every ten seconds
// elsewhere.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

namespace dropcycle {

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  Progress() : terminal_(::isatty(STDERR_FILENO) == 1) {}
  ~Progress() { clear(); }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  // Whether it is time for another line.
  bool due() const {
    return Clock::now() - shown_ >= (terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(10));
  }
  void show(const std::string& text) {
    shown_ = Clock::now();
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", text.c_str());
    std::fflush(stderr);
    dirty_ = true;
  }
  void clear() {
    if (terminal_ && dirty_) std::fputs("\r\033[K", stderr);
    dirty_ = false;
  }

 private:
  bool terminal_, dirty_ = false;
  Clock::time_point start_ = Clock::now(), shown_ = start_;
};

}  // namespace dropcycle
