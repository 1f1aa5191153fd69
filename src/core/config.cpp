#include "dropcycle/core/config.hpp"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "config_schema.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/suggest.hpp"

namespace dropcycle {
namespace {

using schema::Field;

// Where a text came from, to name places in it.
struct Origin {
  std::string name;
  bool places = true;  // whether line and column mean something

  std::string at(const toml::source_region& region) const {
    if (!places) return name;
    return fmt::format("{}:{}:{}", name, region.begin.line, region.begin.column);
  }
};

std::string kind_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "a text";
    case toml::node_type::integer:
      return "a whole number";
    case toml::node_type::floating_point:
      return "a number with a fraction or exponent";
    case toml::node_type::boolean:
      return "true or false";
    default:
      return "a date or time";
  }
}

std::string expected_type(const Field& field) {
  return (std::holds_alternative<bool*>(field) ? "" : "a ") + schema::type_name(field);
}

[[noreturn]] void fail_type(const Origin& origin, const toml::node& node, std::string_view key,
                            std::string_view expected) {
  fail(Status::usage, "{}: '{}' is {}, expected {}", origin.at(node.source()), key, kind_of(node), expected);
}

template <class Object>
void read_table(const toml::table& table, const Origin& origin, std::string_view prefix,
                std::span<const schema::Key<Object>> keys, Object& object);

void read_list(const toml::array& array, const Origin& origin, std::string_view key, std::vector<std::string>& texts) {
  texts.clear();
  for (const toml::node& item : array) {
    if (!item.is_string()) fail_type(origin, item, key, "a list of texts");
    texts.push_back(item.as_string()->get());
  }
}

void read_list(const toml::array& array, const Origin& origin, std::string_view key,
               std::vector<std::int64_t>& numbers) {
  numbers.clear();
  for (const toml::node& item : array) {
    if (!item.is_integer()) fail_type(origin, item, key, "a list of whole numbers");
    numbers.push_back(item.as_integer()->get());
  }
}

void read_list(const toml::array& array, const Origin& origin, std::string_view key,
               std::vector<SourceConfig>& sources) {
  sources.clear();
  for (const toml::node& item : array) {
    if (!item.is_table()) fail_type(origin, item, key, "a list of tables with name, shards and weight or tokens");
    sources.emplace_back();
    read_table(*item.as_table(), origin, std::string(key) + ".", schema::source_keys(), sources.back());
  }
}

// Stores a node's value; false if its type doesn't fit.
bool store(const toml::node& node, const Origin& origin, std::string_view key, const Field& field) {
  const auto assign = [&](auto* value) {
    using T = std::remove_pointer_t<decltype(value)>;
    if constexpr (std::is_same_v<T, bool>) {
      if (!node.is_boolean()) return false;
      *value = node.as_boolean()->get();
    } else if constexpr (std::is_integral_v<T>) {
      if (!node.is_integer()) return false;
      const std::int64_t number = node.as_integer()->get();
      if (!std::in_range<T>(number)) {
        fail(Status::usage, "{}: '{}' is {}, expected a number from {} to {}", origin.at(node.source()), key, number,
             std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
      }
      *value = static_cast<T>(number);
    } else if constexpr (std::is_same_v<T, double>) {
      if (!node.is_number()) return false;
      *value = node.is_integer() ? static_cast<double>(node.as_integer()->get()) : node.as_floating_point()->get();
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!node.is_string()) return false;
      *value = node.as_string()->get();
    } else {
      if (!node.is_array()) return false;
      read_list(*node.as_array(), origin, key, *value);
    }
    return true;
  };
  return std::visit(assign, field);
}

// Words that may stand at `prefix`: keys there, and sections where keys lie one level deeper.
template <class Object>
std::vector<std::string> words_at(std::string_view prefix, std::span<const schema::Key<Object>> keys) {
  std::vector<std::string> words;
  for (const auto& key : keys) {
    if (!std::is_same_v<Object, SourceConfig> && !key.name.starts_with(prefix)) continue;
    std::string_view word = key.name;
    if constexpr (!std::is_same_v<Object, SourceConfig>) word.remove_prefix(prefix.size());
    word = schema::section_of(word);
    if (words.empty() || words.back() != word) words.emplace_back(word);
  }
  if (prefix.empty()) words.emplace_back("include");
  return words;
}

template <class Object>
[[noreturn]] void fail_unknown(const Origin& origin, const toml::key& key, std::string_view prefix,
                               std::span<const schema::Key<Object>> keys) {
  std::string hint = did_you_mean(key.str(), words_at(prefix, keys));
  if (hint.empty()) {  // the right word in the wrong section
    std::vector<std::string> elsewhere;
    for (const auto& other : keys) {
      if (schema::leaf_of(other.name) == key.str()) elsewhere.emplace_back(other.name);
    }
    hint = elsewhere.empty() ? fmt::format(": expected one of {}", fmt::join(words_at(prefix, keys), ", "))
                             : fmt::format(": did you mean '{}'?", fmt::join(elsewhere, "' or '"));
  }
  fail(Status::usage, "{}: unknown key '{}{}'{}", origin.at(key.source()), prefix, key.str(), hint);
}

template <class Object>
void read_table(const toml::table& table, const Origin& origin, std::string_view prefix,
                std::span<const schema::Key<Object>> keys, Object& object) {
  for (const auto& [word, node] : table) {
    if (prefix.empty() && word == "include" && origin.places) continue;
    const std::string key_name =
        std::is_same_v<Object, SourceConfig> ? std::string(word.str()) : fmt::format("{}{}", prefix, word.str());
    const auto key = std::ranges::find(keys, key_name, &schema::Key<Object>::name);
    if (key != keys.end()) {
      const Field field = key->field(object);
      const std::string shown = fmt::format("{}{}", prefix, word.str());
      if (!store(node, origin, shown, field)) fail_type(origin, node, shown, expected_type(field));
      const std::string problem = schema::complaint(field, key->bounds, key->choices);
      if (!problem.empty()) fail(Status::usage, "{}: '{}' {}", origin.at(node.source()), shown, problem);
      continue;
    }
    const std::string section = key_name + ".";
    const bool is_section = std::ranges::any_of(keys, [&](const auto& k) { return k.name.starts_with(section); });
    if (!is_section) fail_unknown(origin, word, prefix, keys);
    if (!node.is_table()) fail_type(origin, node, key_name, "a table");
    read_table(*node.as_table(), origin, section, keys, object);
  }
}

toml::table parse_toml(std::string_view text, const Origin& origin) {
  try {
    return toml::parse(text, origin.name);
  } catch (const toml::parse_error& error) {
    std::string reason(error.description());
    std::ranges::replace(reason, '\n', ' ');
    fail(Status::usage, "{}: not TOML: {}", origin.at(error.source()), reason);
  }
}

void read_file_into(Config& config, const std::filesystem::path& path, std::vector<std::filesystem::path> opened) {
  const Origin origin{path.string()};
  const std::filesystem::path identity = std::filesystem::weakly_canonical(path);
  if (std::ranges::find(opened, identity) != opened.end()) {
    fail(Status::usage, "{}: the file includes itself through {}", origin.name, opened.back().string());
  }
  opened.push_back(identity);
  const toml::table table = parse_toml(read_file(path), origin);
  if (const toml::node* include = table.get("include")) {
    if (!include->is_array()) fail_type(origin, *include, "include", "a list of files");
    std::vector<std::string> files;
    read_list(*include->as_array(), origin, "include", files);
    for (const std::string& file : files) {
      const std::filesystem::path included = path.parent_path() / file;
      if (!std::filesystem::exists(included)) {
        fail(Status::usage, "{}: included file {} isn't there", origin.at(include->source()), included.string());
      }
      read_file_into(config, included, opened);
    }
  }
  read_table(table, origin, "", schema::config_keys(), config);
}

// "key=value": the value is TOML, or for a text key anything.
void apply_override(Config& config, const std::string& text) {
  const Origin origin{"--set " + text, false};
  const std::size_t equal = text.find('=');
  if (equal == std::string::npos || equal == 0) {
    fail(Status::usage, "{}: expected --set section.key=value", origin.name);
  }
  const std::string key_name = text.substr(0, equal);
  std::string value = text.substr(equal + 1);
  const auto keys = schema::config_keys();
  const auto key = std::ranges::find(keys, key_name, &schema::Key<Config>::name);
  if (key == keys.end()) {
    std::vector<std::string> names;
    for (const auto& other : keys) names.emplace_back(other.name);
    const std::string hint = did_you_mean(key_name, names);
    fail(Status::usage, "{}: unknown key '{}'{}", origin.name, key_name,
         hint.empty() ? ": `dropcycle config` prints all keys" : hint);
  }
  const bool is_text = std::holds_alternative<std::string*>(key->field(config));
  if (is_text && !value.starts_with('"') && !value.starts_with('\'')) value = schema::quote(value);
  read_table(parse_toml(fmt::format("{} = {}", key_name, value), origin), origin, "", keys, config);
}

// Every key of the sections that start with `prefix`, in the schema's order.
std::string print_sections(Config config, std::string_view prefix) {
  std::string text, section, sources;
  for (const auto& key : schema::config_keys()) {
    if (!key.name.starts_with(prefix)) continue;
    if (section != schema::section_of(key.name)) {
      text += sources;
      sources.clear();
      section = schema::section_of(key.name);
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", section);
    }
    const Field field = key.field(config);
    if (auto* const* list = std::get_if<std::vector<SourceConfig>*>(&field)) {
      // Tables of a list end their section, so they are printed after its plain keys.
      for (SourceConfig& source : **list) {
        sources += fmt::format("\n[[{}]]\n", key.name);
        for (const auto& part : schema::source_keys()) {
          sources += fmt::format("{} = {}\n", part.name, schema::value_text(part.field(source)));
        }
      }
    } else {
      text += fmt::format("{} = {}\n", schema::leaf_of(key.name), schema::value_text(field));
    }
  }
  return text + sources;
}

}  // namespace

Config load_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  Config config;
  read_file_into(config, path, {});
  for (const std::string& text : overrides) apply_override(config, text);
  return config;
}

Config parse_config(const std::vector<std::string>& overrides) {
  Config config;
  for (const std::string& text : overrides) apply_override(config, text);
  return config;
}

std::string to_toml(const Config& config) { return print_sections(config, ""); }

std::string to_toml(const ModelConfig& model) {
  Config config;
  config.model = model;
  return print_sections(config, "model.");
}

ModelConfig parse_model(const std::string& text) {
  Config config;
  const Origin origin{"model configuration"};
  read_table(parse_toml(text, origin), origin, "", schema::config_keys(), config);
  return config.model;
}

std::string describe_config() {
  Config defaults;
  std::string text = fmt::format("{:<33} {:<15} {:<14} {:<10} {}\n", "key", "type", "default", "unit", "meaning");
  const auto add = [&text](const std::string& name, const Field& field, const auto& key) {
    const std::string allowed = schema::allowed_text(key.bounds, key.choices);
    text += fmt::format("{:<33} {:<15} {:<14} {:<10} {}{}{}\n", name, schema::type_name(field),
                        schema::value_text(field), key.unit, key.meaning, allowed.empty() ? "" : "; ", allowed);
  };
  for (const auto& key : schema::config_keys()) {
    const Field field = key.field(defaults);
    add(std::string(key.name), field, key);
    if (!std::holds_alternative<std::vector<SourceConfig>*>(field)) continue;
    SourceConfig source;
    for (const auto& part : schema::source_keys())
      add(fmt::format("{}.{}", key.name, part.name), part.field(source), part);
  }
  return text;
}

std::vector<std::string> config_key_names() {
  std::vector<std::string> names;
  for (const auto& key : schema::config_keys()) names.emplace_back(key.name);
  return names;
}

}  // namespace dropcycle
