#include "dropcycle/checkpoint/safetensors.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "json_text.hpp"

namespace dropcycle {
namespace {

constexpr const char* kMetadata = "__metadata__";
constexpr std::uint64_t kLengthBytes = 8;

// Bytes of an element.
std::optional<std::uint64_t> element_bytes(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t, std::less<>> kSizes = {
      {"F64", 8}, {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4},  {"U32", 4},     {"F16", 2},    {"BF16", 2},
      {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto place = kSizes.find(dtype);
  return place == kSizes.end() ? std::nullopt : std::optional(place->second);
}

// One tensor's part of the header.
class EntryParser {
 public:
  EntryParser(const std::string& name, const nlohmann::json& json, const std::string& where)
      : name_(shown(name)), json_(json), where_(where) {
    entry_.name = name;
    if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") ||
        !json.contains("data_offsets")) {
      complain("expected dtype, shape and data_offsets, nothing else");
    }
  }

  // Offsets count from the first byte of the data.
  SafetensorsEntry parse(std::uint64_t data_bytes) {
    const nlohmann::json &dtype = json_.at("dtype"), &shape = json_.at("shape"), &offsets = json_.at("data_offsets");
    if (!dtype.is_string()) complain("its dtype isn't text");
    entry_.dtype = dtype.get<std::string>();
    const auto bytes = element_bytes(entry_.dtype);
    if (!bytes) complain(fmt::format("its dtype '{}' is unknown, expected F32, BF16 or F16", shown(entry_.dtype)));
    if (!shape.is_array() || shape.size() > 8) complain("its shape isn't a list of at most 8 sizes");
    auto product = static_cast<std::int64_t>(*bytes);
    for (const nlohmann::json& size : shape) {
      entry_.shape.push_back(static_cast<std::int64_t>(number(size, "a size")));
      if (__builtin_mul_overflow(product, entry_.shape.back(), &product)) complain("its sizes overflow");
    }
    if (!offsets.is_array() || offsets.size() != 2) complain("its data_offsets aren't two numbers");
    const std::uint64_t begin = number(offsets[0], "an offset"), end = number(offsets[1], "an offset");
    if (begin > end || end > data_bytes) {
      complain(fmt::format("its data, bytes {} to {}, isn't in the file's {}", begin, end, data_bytes));
    }
    entry_.offset = begin;
    entry_.size_bytes = end - begin;
    if (entry_.size_bytes != static_cast<std::uint64_t>(product)) {
      complain(fmt::format("its data has {} bytes, but its shape and type make {}", entry_.size_bytes, product));
    }
    return std::move(entry_);
  }

 private:
  [[noreturn]] void complain(const std::string& what) const {
    fail(Status::input, "{}: tensor '{}': {}: not a whole safetensors file", where_, name_, what);
  }
  // A number of 0 to 2^63 - 1.
  std::uint64_t number(const nlohmann::json& json, const char* what) const {
    if (!json.is_number_unsigned() || json.get<std::uint64_t>() > INT64_MAX) {
      complain(fmt::format("{} is {}, expected a whole number from 0 on", what, shown(json.dump(-1, ' ', true))));
    }
    return json.get<std::uint64_t>();
  }

  std::string name_;
  const nlohmann::json& json_;
  const std::string& where_;
  SafetensorsEntry entry_;
};

void check_metadata(const nlohmann::json& json, const std::string& where) {
  const bool texts = json.is_object() && std::ranges::all_of(json, [](const auto& value) { return value.is_string(); });
  if (!texts) fail(Status::input, "{}: {} isn't an object of texts: not a whole safetensors file", where, kMetadata);
}

}  // namespace

std::string_view safetensors_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    default:
      fail(Status::internal, "{} isn't a type of weights in a safetensors file", name(dtype));
  }
}

std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header, std::uint64_t data_bytes,
                                                       const std::string& where) {
  if (!header.starts_with('{')) fail(Status::input, "{}: its header isn't JSON: not a safetensors file", where);
  const nlohmann::json json = parse_json_object(header, where);
  std::vector<SafetensorsEntry> entries;
  for (const auto& [key, value] : json.items()) {
    if (key == kMetadata) {
      check_metadata(value, where);
    } else {
      entries.push_back(EntryParser(key, value, where).parse(data_bytes));
    }
  }
  std::ranges::sort(entries, {},
                    [](const SafetensorsEntry& entry) { return std::pair(entry.offset, entry.size_bytes); });
  std::uint64_t position = 0;
  for (SafetensorsEntry& entry : entries) {
    if (entry.offset != position) {
      fail(Status::input, "{}: the data of tensor '{}' begins at byte {}, expected {}: it overlaps or leaves a hole",
           where, shown(entry.name), entry.offset, position);
    }
    position += entry.size_bytes;
    entry.offset += kLengthBytes + header.size();
  }
  if (position != data_bytes) {
    fail(Status::input, "{}: its tensors have {} bytes, but {} follow the header: cut off, or with something added",
         where, position, data_bytes);
  }
  return entries;
}

std::vector<SafetensorsEntry> read_safetensors_header(int descriptor, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || status.st_size < static_cast<off_t>(kLengthBytes)) {
    fail(Status::input, "{}: has less than {} bytes: not a safetensors file", path.string(), kLengthBytes);
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  std::array<unsigned char, kLengthBytes> length{};
  read_at(descriptor, length.data(), length.size(), 0, path);
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < length.size(); ++i) header_bytes |= static_cast<std::uint64_t>(length[i]) << (8 * i);
  if (header_bytes > size - kLengthBytes || header_bytes > kMaxJsonBytes) {
    fail(Status::input, "{}: says that its header has {} bytes, expected at most {} (the file has {})", path.string(),
         header_bytes, kMaxJsonBytes, size);
  }
  std::string header(header_bytes, ' ');
  read_at(descriptor, header.data(), header.size(), kLengthBytes, path);
  return parse_safetensors_header(header, size - kLengthBytes - header_bytes, path.string());
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view text, const std::string& where) {
  const nlohmann::json json = parse_json_object(text, where);
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object() || map->empty()) {
    fail(Status::input, "{}: has no weight_map from tensors to files", where);
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    const bool plain = name.ends_with(".safetensors") && !name.starts_with('.') && name.size() < 256 &&
                       name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    if (!plain) {
      fail(Status::input, "{}: tensor '{}' is in '{}', expected a plain file name that ends with .safetensors", where,
           shown(tensor), shown(name));
    }
    files.emplace(tensor, name);
  }
  return files;
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<SafetensorsEntry> entries)
    : path_(std::move(path)) {
  nlohmann::ordered_json json = {{kMetadata, {{"format", "pt"}}}};
  for (const SafetensorsEntry& entry : entries) {
    json[entry.name] = {
        {"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {end_, end_ + entry.size_bytes}}};
    end_ += entry.size_bytes;
  }
  std::string header = json.dump();
  header.append((8 - header.size() % 8) % 8, ' ');  // the data begins at a multiple of 8
  std::string start;
  for (int byte = 0; byte < 8; ++byte) start.push_back(static_cast<char>(header.size() >> (8 * byte) & 255U));
  start += header;
  end_ += start.size();
  descriptor_ = file_system().create(path_);
  append(start.data(), start.size());
}

SafetensorsWriter::~SafetensorsWriter() {
  if (descriptor_ < 0) return;
  try {
    file_system().close(descriptor_, path_);
  } catch (const Error&) {  // the file wasn't finished, so nobody takes it for whole
  }
}

void SafetensorsWriter::append(const void* data, std::size_t size) {
  require(size <= end_ - position_, "{}: more data than its header says", path_.string());
  file_system().write(descriptor_, data, size, position_, path_);
  position_ += size;
}

void SafetensorsWriter::finish() {
  require(position_ == end_, "{}: {} of {} bytes written", path_.string(), position_, end_);
  file_system().sync(descriptor_, path_);
  file_system().close(std::exchange(descriptor_, -1), path_);
}

}  // namespace dropcycle
