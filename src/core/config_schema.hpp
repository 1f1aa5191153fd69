// The one table of configuration keys: what parsing, checking, printing and describing work on.
#pragma once

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dropcycle/core/config.hpp"

namespace dropcycle::schema {

struct Bounds {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool above = false, below = false;  // whether `least` and `most` themselves are out of range
};

// Where a value lives.
using Field = std::variant<bool*, int*, std::int64_t*, std::uint64_t*, double*, std::string*, std::vector<std::string>*,
                           std::vector<std::int64_t>*, std::vector<SourceConfig>*>;

// One key of the configuration (Object = Config, dotted name) or of a data source (Object = SourceConfig).
template <class Object>
struct Key {
  std::string_view name;
  Field (*field)(Object&);
  std::string_view unit;
  std::string_view meaning;
  Bounds bounds = {};
  std::vector<std::string> choices = {};  // all values of a text key; empty: any text
};

std::span<const Key<Config>> config_keys();
std::span<const Key<SourceConfig>> source_keys();

// "model" and "heads" of "model.heads".
inline std::string_view section_of(std::string_view key) { return key.substr(0, key.find('.')); }
inline std::string_view leaf_of(std::string_view key) { return key.substr(key.find('.') + 1); }

// "whole number", "number", "true or false", "text", "list of texts", "list of whole numbers", "list of
// tables".
std::string type_name(const Field& field);
// "at least 1", "in [0, 1)", "one of 'a', 'b'"; empty where everything goes.
std::string allowed_text(const Bounds& bounds, const std::vector<std::string>& choices);
// Empty if the value is allowed, else "is 3, expected ...".
std::string complaint(const Field& field, const Bounds& bounds, const std::vector<std::string>& choices);
// The value as TOML; a list of sources as inline tables.
std::string value_text(const Field& field);
// A TOML basic string with quotes.
std::string quote(std::string_view text);

}  // namespace dropcycle::schema
