// The text of a line of JSON, or what is wrong with the line.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace dropcycle {

enum class LineFault { none, broken_json, no_text, not_a_string, invalid_utf8, too_long };
// "broken_json" and so on.
std::string_view name(LineFault fault);

struct ExtractedText {
  LineFault fault = LineFault::none;
  std::string_view text;   // valid until the next call
  std::uint64_t byte = 0;  // where in the line the fault is
  std::string reason;      // of the fault, for people
};

class TextExtractor {
 public:
  explicit TextExtractor(std::string text_key);
  ~TextExtractor();
  // The string at the text key of the JSON object `line`. At least kPadding bytes after the line must be readable.
  ExtractedText from_json(std::string_view line);
  // The line itself, if it is UTF-8.
  static ExtractedText from_text(std::string_view line);

  static constexpr std::size_t kPadding = 64;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle
