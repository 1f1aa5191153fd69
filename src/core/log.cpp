#include "dropcycle/core/log.hpp"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

namespace dropcycle {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// On a terminal a message first wipes the line, where a live line of a training run may stand.
std::string pattern(std::string_view prefix) {
  return fmt::format("{}%H:%M:%S %^%l%$ {}%v", ::isatty(STDERR_FILENO) == 1 ? "\x1b[2K" : "", prefix);
}

spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger created("dropcycle", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    created.set_pattern(pattern(""));
    created.flush_on(spdlog::level::debug);
    return created;
  }();
  return instance;
}

}  // namespace

void set_log(LogLevel level, std::string_view prefix) {
  logger().set_level(to_spdlog(level));
  logger().set_pattern(pattern(prefix));
}

void log_message(LogLevel level, fmt::string_view format, fmt::format_args arguments) {
  logger().log(to_spdlog(level), fmt::vformat(format, arguments));
}

}  // namespace dropcycle
