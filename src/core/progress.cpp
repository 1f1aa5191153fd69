#include "dropcycle/core/progress.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace dropcycle {

Progress::Progress() : terminal_(::isatty(STDERR_FILENO) == 1) {}

void Progress::clear() {
  if (terminal_ && dirty_) std::fputs("\r\033[K", stderr);
  dirty_ = false;
}

bool Progress::due() const {
  return Clock::now() - shown_ >= (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000));
}

void Progress::show(const std::string& text) {
  shown_ = Clock::now();
  std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", text.c_str());
  std::fflush(stderr);
  dirty_ = true;
}

void Progress::show_bytes(const char* work, std::uint64_t done, std::uint64_t all) {
  if (!due()) return;
  const double rate = static_cast<double>(done) / std::max(seconds(), 1e-9);
  show(fmt::format("{}  {:.0f} %  {:.2f} of {:.2f} GB  {:.2f} GB/s  {:.0f} s left", work,
                   100.0 * static_cast<double>(done) / static_cast<double>(std::max<std::uint64_t>(all, 1)),
                   static_cast<double>(done) * 1e-9, static_cast<double>(all) * 1e-9, rate * 1e-9,
                   static_cast<double>(all - done) / std::max(rate, 1.0)));
}

}  // namespace dropcycle
