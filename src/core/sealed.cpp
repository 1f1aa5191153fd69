#include "dropcycle/core/sealed.hpp"

#include <fmt/format.h>

#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

constexpr std::size_t kDigestDigits = 32;

std::string tail(std::string_view digits) { return fmt::format(",\n \"digest\": \"{}\"\n}}\n", digits); }

}  // namespace

std::string seal(std::string_view object) {
  const std::size_t end = object.find_last_of('}');
  require(end != std::string_view::npos, "only a JSON object can be sealed");
  std::string_view body = object.substr(0, end);
  body = body.substr(0, body.find_last_not_of(" \n\t") + 1);
  return std::string(body) + tail(digest(body));
}

std::string check_seal(std::string_view text, const std::filesystem::path& path) {
  const std::size_t tail_size = tail(std::string(kDigestDigits, '0')).size();
  if (text.size() > tail_size) {
    const std::string_view body = text.substr(0, text.size() - tail_size);
    std::string digits = digest(body);
    if (text.substr(body.size()) == tail(digits)) return digits;
  }
  fail(Status::input, "{}: damaged: its digest isn't that of its text ({} bytes); take another copy", path.string(),
       text.size());
}

}  // namespace dropcycle
