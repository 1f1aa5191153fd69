// JSON whose errors say where they are: "tokenizer.json: model.merges[7]: ...". Over simdjson.
#pragma once

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "dropcycle/core/error.hpp"

namespace dropcycle {

// Valid as long as the JsonFile that it comes from.
class Json {
 public:
  Json(simdjson::dom::element element, std::string place, const std::string& file)
      : element_(element), place_(std::move(place)), file_(&file) {}

  [[noreturn]] void refuse(std::string_view what) const {
    fail(Status::input, "{}: {}: {}", *file_, place_.empty() ? "the file" : place_, what);
  }
  std::string where() const { return *file_ + ": " + place_; }
  bool null() const { return element_.is_null(); }
  bool is_string() const { return element_.is_string(); }
  bool is_array() const { return element_.is_array(); }

  // The value at `key`; nothing if there is none or it is null.
  std::optional<Json> find(std::string_view key) const {
    simdjson::dom::element value;
    if (object()[key].get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
    return Json(value, inner(key), *file_);
  }
  Json at(std::string_view key) const {
    if (auto found = find(key)) return *found;
    refuse(fmt::format("'{}' is missing: give a whole tokenizer.json", key));
  }
  Json item(simdjson::dom::element value, std::size_t index) const {
    return Json(value, fmt::format("{}[{}]", place_, index), *file_);
  }
  Json member(simdjson::dom::element value, std::string_view key) const { return Json(value, inner(key), *file_); }

  simdjson::dom::object object() const { return get<simdjson::dom::object>("an object"); }
  simdjson::dom::array array() const { return get<simdjson::dom::array>("a list"); }
  std::string_view text() const { return get<std::string_view>("a string"); }
  bool flag() const { return get<bool>("true or false"); }
  std::int64_t integer() const { return get<std::int64_t>("a whole number"); }
  double real() const { return get<double>("a number"); }
  bool flag(std::string_view key, bool otherwise) const {
    const auto value = find(key);
    return value ? value->flag() : otherwise;
  }

  // Refuses every key that isn't listed: what it would mean isn't known.
  void only(std::initializer_list<std::string_view> keys) const {
    for (const auto [key, value] : object()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end() && !value.is_null()) {
        refuse(fmt::format("'{}' isn't supported: give a tokenizer without it", key.substr(0, 40)));
      }
    }
  }

 private:
  std::string inner(std::string_view key) const {
    return place_.empty() ? std::string(key) : fmt::format("{}.{}", place_, key.substr(0, 40));
  }
  template <class T>
  T get(std::string_view expected) const {
    T value;
    if (element_.get(value) != simdjson::SUCCESS) refuse(fmt::format("expected {}", expected));
    return value;
  }

  simdjson::dom::element element_;
  std::string place_;
  const std::string* file_;
};

// `json` with every whole number of more than 19 digits outside strings as one with an exponent, which simdjson takes.
// transformers writes 1000000000000000019884624838656 for a length without limit.
inline std::string with_long_numbers(const std::string& json) {
  std::string result;
  bool quoted = false;
  for (std::size_t i = 0; i < json.size();) {
    const std::size_t end = quoted ? i : std::min(json.find_first_not_of("0123456789", i), json.size());
    if (end == i) {
      if (json[i] == '"') quoted = !quoted;
      const std::size_t taken = quoted && json[i] == '\\' ? 2 : 1;
      result.append(json, i, taken);
      i += taken;
      continue;
    }
    result.append(json, i, end - i);
    const bool part_of_another =
        (i > 0 && std::string_view(".+eE").find(json[i - 1]) != std::string_view::npos) ||
        (end < json.size() && std::string_view(".eE").find(json[end]) != std::string_view::npos);
    if (end - i > 19 && !part_of_another) result += "e0";
    i = end;
  }
  return result;
}

class JsonFile {
 public:
  // Throws Error{input} naming `file` if `bytes` isn't JSON.
  JsonFile(std::string file, const std::string& bytes) : file_(std::move(file)) {
    auto error = parser_.parse(bytes).get(root_);
    if (error == simdjson::NUMBER_ERROR) {
      error = parser_.parse(with_long_numbers(bytes)).get(root_);
    }
    if (error != simdjson::SUCCESS) {
      fail(Status::input, "{}: isn't JSON ({}): give a whole file", file_, simdjson::error_message(error));
    }
  }
  Json root() const { return Json(root_, "", file_); }

 private:
  std::string file_;
  simdjson::dom::parser parser_;
  simdjson::dom::element root_;
};

}  // namespace dropcycle
