#include "json_text.hpp"

#include <set>
#include <vector>

#include "dropcycle/core/error.hpp"

namespace dropcycle {

nlohmann::json parse_json_object(std::string_view text, const std::string& where) {
  using Json = nlohmann::json;
  constexpr int kMaxDepth = 32;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto look = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth)
      fail(Status::input, "{}: nested deeper than {}: not a file that belongs here", where, kMaxDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      fail(Status::input, "{}: has the key '{}' twice, so it is unclear what is meant", where,
           shown(parsed.get<std::string>()));
    }
    return true;
  };
  try {
    Json json = Json::parse(text, look);
    if (!json.is_object()) fail(Status::input, "{}: expected a JSON object", where);
    return json;
  } catch (const Json::exception& exception) {
    fail(Status::input, "{}: isn't whole JSON: {}", where, shown(exception.what()));
  }
}

std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 200;
  std::string result(text.substr(0, kLongest));
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return text.size() > kLongest ? result + "..." : result;
}

}  // namespace dropcycle
