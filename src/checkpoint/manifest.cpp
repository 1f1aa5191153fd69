#include "manifest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/sealed.hpp"

namespace dropcycle {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kFormat = "dropcycle checkpoint";

Json to_json(const Shape& shape) { return std::vector<std::int64_t>(shape.sizes().begin(), shape.sizes().end()); }

Json to_json(const SliceEntry& slice) {
  return {{"offset", to_json(slice.offset)}, {"shape", to_json(slice.shape)},    {"file", slice.file},
          {"dataset", slice.dataset},        {"byte_offset", slice.byte_offset}, {"digest", slice.digest}};
}

// Turns JSON into the structs; every complaint names the manifest.
class Parser {
 public:
  explicit Parser(const std::filesystem::path& path) : path_(path) {}

  template <class... Arguments>
  [[noreturn]] void complain(fmt::format_string<Arguments...> format, Arguments&&... arguments) const {
    const std::string what = fmt::format(format, std::forward<Arguments>(arguments)...);
    fail(Status::input, "{}: {}: not a manifest that this program wrote", path_.string(), what);
  }

  Shape shape(const Json& json) const {
    const auto sizes = json.get<std::vector<std::int64_t>>();
    if (sizes.size() > Shape::kMaxDims) complain("a shape of {} dims", sizes.size());
    std::int64_t product = 8;  // bytes of the widest element
    for (const std::int64_t size : sizes) {
      if (size < 0 || __builtin_mul_overflow(product, std::max<std::int64_t>(size, 1), &product)) {
        complain("a shape with size {}", size);
      }
    }
    return Shape(std::span<const std::int64_t>(sizes));
  }

  FileEntry file(const Json& json) const {
    FileEntry entry{json.at("name"), json.at("size_bytes"), json.at("structure_digest")};
    const std::string& name = entry.name;
    const bool plain = name.size() > 8 && name.starts_with("rank_") && name.ends_with(".h5") &&
                       std::all_of(name.begin() + 5, name.end() - 3, [](char c) { return c >= '0' && c <= '9'; });
    if (!plain) complain("file name '{}' (expected rank_<number>.h5)", name);
    return entry;
  }

  SliceEntry slice(const Json& json, const ParameterEntry& parameter, const std::vector<FileEntry>& files) const {
    SliceEntry entry{json.at("file"),    shape(json.at("offset")), shape(json.at("shape")),
                     json.at("dataset"), json.at("byte_offset"),   json.at("digest")};
    const Shape& global = parameter.shape;
    bool inside = entry.offset.dims() == global.dims() && entry.shape.dims() == global.dims();
    for (int dim = 0; inside && dim < global.dims(); ++dim) {
      inside = entry.shape[dim] > 0 && entry.offset[dim] <= global[dim] - entry.shape[dim];
    }
    if (!inside) complain("slice {} of {} doesn't lie in it", entry.dataset, parameter.name);
    if (entry.file < 0 || entry.file >= static_cast<int>(files.size())) complain("file number {}", entry.file);
    const FileEntry& home = files[static_cast<std::size_t>(entry.file)];
    const auto bytes = static_cast<std::uint64_t>(entry.shape.elements() * size_bytes(parameter.dtype));
    if (bytes > home.size_bytes || entry.byte_offset > home.size_bytes - bytes) {
      complain("{} ends after the end of {}", entry.dataset, home.name);
    }
    return entry;
  }

  AttachmentEntry tokenizer_file(const Json& json) const {
    AttachmentEntry entry{json.at("name"), json.at("size_bytes"), json.at("digest")};
    if (std::ranges::find(kTokenizerFiles, entry.name) == std::end(kTokenizerFiles))
      complain("file name '{}' (expected a tokenizer's)", entry.name);
    return entry;
  }

  ParameterEntry parameter(const Json& json, const std::vector<FileEntry>& files) const {
    ParameterEntry entry{json.at("kind"), json.at("name"), DType::f32, shape(json.at("shape")), {}};
    try {
      entry.dtype = parse_dtype(json.at("dtype").get<std::string>());
    } catch (const Error& error) {
      complain("{}", error.what());
    }
    for (const Json& part : json.at("slices")) entry.slices.push_back(slice(part, entry, files));
    return entry;
  }

  // Disjoint slices with as many elements as the tensor cover it.
  void check_cover(const ParameterEntry& parameter) const {
    std::int64_t elements = 0;
    for (std::size_t i = 0; i < parameter.slices.size(); ++i) {
      elements += parameter.slices[i].shape.elements();
      for (std::size_t j = 0; j < i; ++j) {
        if (overlap(parameter.slices[i], parameter.slices[j])) {
          complain("{} {} is stored twice in part", parameter.kind, parameter.name);
        }
      }
    }
    if (elements != parameter.shape.elements()) {
      complain("{} {} has {} of {} elements", parameter.kind, parameter.name, elements, parameter.shape.elements());
    }
  }

  CheckpointInfo info(const Json& json) const {
    CheckpointInfo result;
    result.step = json.at("step");
    result.model = json.at("model");
    result.config = json.at("config");
    result.data_position = json.at("data_position").dump();
    result.seed = json.at("seed");
    result.tokenizer_digest = json.at("tokenizer_digest");
    result.origin = json.at("origin").dump();
    result.huggingface = json.value("huggingface", Json::object()).dump();
    result.versions = json.at("versions").get<std::map<std::string, std::string>>();
    return result;
  }

 private:
  static bool overlap(const SliceEntry& a, const SliceEntry& b) {
    for (int dim = 0; dim < a.shape.dims(); ++dim) {
      if (a.offset[dim] + a.shape[dim] <= b.offset[dim] || b.offset[dim] + b.shape[dim] <= a.offset[dim]) return false;
    }
    return true;
  }

  const std::filesystem::path& path_;
};

}  // namespace

std::string to_text(const Manifest& manifest) {
  Json files = Json::array(), parameters = Json::array();
  for (const FileEntry& file : manifest.files) {
    files.push_back(
        {{"name", file.name}, {"size_bytes", file.size_bytes}, {"structure_digest", file.structure_digest}});
  }
  for (const ParameterEntry& parameter : manifest.parameters) {
    Json slices = Json::array();
    for (const SliceEntry& slice : parameter.slices) slices.push_back(to_json(slice));
    parameters.push_back({{"kind", parameter.kind},
                          {"name", parameter.name},
                          {"dtype", name(parameter.dtype)},
                          {"shape", to_json(parameter.shape)},
                          {"slices", std::move(slices)}});
  }
  Json tokenizer_files = Json::array();
  for (const AttachmentEntry& file : manifest.tokenizer_files) {
    tokenizer_files.push_back({{"name", file.name}, {"size_bytes", file.size_bytes}, {"digest", file.digest}});
  }
  const CheckpointInfo& info = manifest.info;
  const Json json = {{"format", kFormat},
                     {"format_version", kFormatVersion},
                     {"step", info.step},
                     {"seed", info.seed},
                     {"versions", info.versions},
                     {"tokenizer_digest", info.tokenizer_digest},
                     {"data_position", Json::parse(info.data_position)},
                     {"origin", Json::parse(info.origin)},
                     {"huggingface", Json::parse(info.huggingface)},
                     {"model", info.model},
                     {"config", info.config},
                     {"tokenizer_files", std::move(tokenizer_files)},
                     {"files", std::move(files)},
                     {"parameters", std::move(parameters)}};
  return seal(json.dump(1));
}

Manifest parse_manifest(const std::string& text, const std::filesystem::path& path, bool complete) {
  check_seal(text, path);
  const Parser parser(path);
  try {
    const Json json = Json::parse(text);
    if (json.at("format") != kFormat) parser.complain("format {}", json.at("format").dump());
    if (json.at("format_version") != kFormatVersion) {
      fail(Status::input, "{}: format version {}, but this program reads version {}: use the program that wrote it",
           path.string(), json.at("format_version").dump(), kFormatVersion);
    }
    Manifest manifest;
    manifest.info = parser.info(json);
    for (const Json& file : json.at("files")) manifest.files.push_back(parser.file(file));
    for (const Json& file : json.value("tokenizer_files", Json::array())) {
      manifest.tokenizer_files.push_back(parser.tokenizer_file(file));
    }
    for (const Json& parameter : json.at("parameters")) {
      manifest.parameters.push_back(parser.parameter(parameter, manifest.files));
      if (complete) parser.check_cover(manifest.parameters.back());
    }
    return manifest;
  } catch (const nlohmann::json::exception& exception) {
    parser.complain("{}", exception.what());
  }
}

Manifest merge(std::span<const Manifest> parts) {
  Manifest all;
  std::map<std::pair<std::string, std::string>, ParameterEntry> parameters;
  for (const Manifest& part : parts) {
    const int first_file = static_cast<int>(all.files.size());
    all.files.insert(all.files.end(), part.files.begin(), part.files.end());
    for (const ParameterEntry& parameter : part.parameters) {
      auto [place, fresh] = parameters.try_emplace({parameter.kind, parameter.name}, parameter);
      ParameterEntry& entry = place->second;
      if (fresh) entry.slices.clear();
      require(entry.dtype == parameter.dtype && entry.shape == parameter.shape,
              "ranks disagree about type or shape of {} {}", parameter.kind, parameter.name);
      for (SliceEntry slice : parameter.slices) {
        slice.file += first_file;
        entry.slices.push_back(std::move(slice));
      }
    }
  }
  for (auto& [key, entry] : parameters) all.parameters.push_back(std::move(entry));
  return all;
}

}  // namespace dropcycle
