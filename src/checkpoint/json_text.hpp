// JSON and names that come from elsewhere.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace dropcycle {

// Throws Error{input} that begins with `where` if `text` isn't one JSON object, has a key twice or is nested deeper
// than 32.
nlohmann::json parse_json_object(std::string_view text, const std::string& where);

// For messages: control characters become '?', and what is long is cut.
std::string shown(std::string_view text);

}  // namespace dropcycle
