#include "text_extractor.hpp"

#include <fmt/format.h>
#include <simdjson.h>

#include <nlohmann/json.hpp>

#include "utf8.hpp"

namespace dropcycle {

static_assert(TextExtractor::kPadding >= simdjson::SIMDJSON_PADDING);

std::string_view name(LineFault fault) {
  switch (fault) {
    case LineFault::none:
      return "none";
    case LineFault::broken_json:
      return "broken_json";
    case LineFault::no_text:
      return "no_text";
    case LineFault::not_a_string:
      return "not_a_string";
    case LineFault::invalid_utf8:
      return "invalid_utf8";
    case LineFault::too_long:
      return "too_long";
  }
  return "?";
}

struct TextExtractor::State {
  std::string text_key;
  simdjson::dom::parser parser;
};

TextExtractor::TextExtractor(std::string text_key) : state_(std::make_unique<State>()) {
  state_->text_key = std::move(text_key);
}
TextExtractor::~TextExtractor() = default;

namespace {

ExtractedText invalid_utf8(std::size_t place) {
  return {LineFault::invalid_utf8, {}, place, "bytes that aren't UTF-8: convert the file to UTF-8"};
}

// simdjson doesn't say where: only nlohmann's parser, which is slower, does.
ExtractedText broken(std::string_view line, const char* message) {
  const std::size_t place = first_invalid_utf8(line);
  if (place < line.size()) return invalid_utf8(place);
  ExtractedText result{LineFault::broken_json, {}, 0, fmt::format("not JSON: {}", message)};
  constexpr std::size_t kExplained = 1U << 20U;
  if (line.size() > kExplained) return result;
  try {
    const auto parsed = nlohmann::json::parse(line);
  } catch (const nlohmann::json::parse_error& error) {
    result.byte = error.byte > 0 ? error.byte - 1 : 0;
  }
  return result;
}

}  // namespace

ExtractedText TextExtractor::from_json(std::string_view line) {
  simdjson::dom::element element;
  const auto failed = state_->parser.parse(line.data(), line.size(), false).get(element);
  if (failed != simdjson::SUCCESS) return broken(line, simdjson::error_message(failed));
  simdjson::dom::object object;
  if (element.get_object().get(object) != simdjson::SUCCESS) {
    return {LineFault::no_text, {}, 0, "JSON, but not an object"};
  }
  simdjson::dom::element value;
  if (object.at_key(state_->text_key).get(value) != simdjson::SUCCESS) {
    return {
        LineFault::no_text, {}, 0, fmt::format("the object has no key \"{}\": --text-key names it", state_->text_key)};
  }
  std::string_view text;
  if (value.get_string().get(text) != simdjson::SUCCESS) {
    return {LineFault::not_a_string, {}, 0, fmt::format("the value of \"{}\" isn't a string", state_->text_key)};
  }
  return {LineFault::none, text, 0, {}};
}

ExtractedText TextExtractor::from_text(std::string_view line) {
  if (simdjson::validate_utf8(line.data(), line.size())) return {LineFault::none, line, 0, {}};
  return invalid_utf8(first_invalid_utf8(line));
}

}  // namespace dropcycle
