#include "dropcycle/core/error.hpp"

#include <fmt/format.h>

namespace dropcycle {

void throw_error(Status status, fmt::string_view format, fmt::format_args arguments) {
  throw Error(status, fmt::vformat(format, arguments));
}

}  // namespace dropcycle
