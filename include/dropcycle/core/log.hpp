// Messages to people, on standard error. Rank 0 speaks; the others are silent below `warning`.
#pragma once

#include <fmt/core.h>

#include <string_view>

namespace dropcycle {

enum class LogLevel { debug, info, warning, error };

// Sets the least level that is printed and the prefix ("rank 3: " where there are several ranks).
void set_log(LogLevel level, std::string_view prefix);
void log_message(LogLevel level, fmt::string_view format, fmt::format_args arguments);

template <class... Arguments>
void log_debug(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  log_message(LogLevel::debug, format, fmt::make_format_args(arguments...));
}
template <class... Arguments>
void log_info(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  log_message(LogLevel::info, format, fmt::make_format_args(arguments...));
}
template <class... Arguments>
void log_warning(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  log_message(LogLevel::warning, format, fmt::make_format_args(arguments...));
}
template <class... Arguments>
void log_error(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  log_message(LogLevel::error, format, fmt::make_format_args(arguments...));
}

}  // namespace dropcycle
