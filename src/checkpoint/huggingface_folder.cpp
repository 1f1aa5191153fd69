#include "huggingface_folder.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/checkpoint/safetensors.hpp"
#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/log.hpp"
#include "dropcycle/model/model.hpp"
#include "json_text.hpp"
#include "plain_folder.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;
constexpr const char* kConfigName = "config.json";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";
constexpr std::uint64_t kMaxTokenizerBytes = 256 << 20;
constexpr std::int64_t kMaxParameters = 1'000'000;

// Where a parameter may stand: a whole tensor, or a stretch of one that holds several.
struct Place {
  std::string tensor;
  std::vector<std::int64_t> shape;  // of the whole tensor
  std::int64_t first = 0;           // element
};

// "layers.3.moe.experts.5.gate" -> "layers.3", "5", "gate"; empty parts for other parameters.
struct ExpertName {
  std::string layer, matrix;
  std::int64_t expert = -1;
};
ExpertName split_expert(const std::string& name) {
  constexpr std::string_view kMiddle = ".moe.experts.";
  const std::size_t middle = name.find(kMiddle), end = name.rfind('.');
  if (middle == std::string::npos) return {};
  const std::size_t begin = middle + kMiddle.size();
  return {name.substr(0, middle), name.substr(end + 1), std::stoll(name.substr(begin, end - begin))};
}

std::vector<Place> places_of(const ParameterSpec& spec, const ModelConfig& model) {
  const std::vector<std::int64_t> shape(spec.shape.sizes().begin(), spec.shape.sizes().end());
  std::vector<Place> places = {{huggingface_name(spec.name), shape, 0}};
  if (const ExpertName name = split_expert(spec.name); name.expert >= 0) {
    const std::int64_t matrix = spec.shape.elements();
    const std::string prefix = "model." + name.layer + ".mlp.experts.";
    if (name.matrix == "down") {
      places.push_back({prefix + "down_proj", {model.experts, shape[0], shape[1]}, name.expert * matrix});
    } else {
      const std::int64_t first = 2 * name.expert + (name.matrix == "up" ? 1 : 0);
      places.push_back({prefix + "gate_up_proj", {model.experts, 2 * shape[0], shape[1]}, first * matrix});
    }
  } else if (spec.name.ends_with(".moe.router")) {
    places.push_back({"model." + spec.name.substr(0, spec.name.find(".moe")) + ".mlp.gate.weight", shape, 0});
  }
  return places;
}

DType dtype_of(const SafetensorsEntry& entry, const std::string& where) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    if (entry.dtype == safetensors_name(dtype)) return dtype;
  }
  fail(Status::input, "{}: tensor '{}' has type {}, expected F32, BF16 or F16 (quantized models can't be read)", where,
       shown(entry.name), entry.dtype);
}

class FolderReader {
 public:
  FolderReader(const fs::path& path, std::vector<int>& descriptors)
      : path_(path), folder_(path), descriptors_(descriptors) {}

  Manifest read() {
    read_config();
    open_files();
    for (const ParameterSpec& spec : declare()) add_parameter(spec);
    check_tied_head();
    check_all_used();
    std::ranges::sort(manifest_.parameters, {}, &ParameterEntry::name);
    read_tokenizer();
    return std::move(manifest_);
  }

 private:
  struct Home {
    SafetensorsEntry entry;
    int file = 0;
    bool used = false;
  };

  std::string where(const std::string& name) const { return (path_ / name).string(); }
  std::string where(const Home& home) const { return where(manifest_.files[static_cast<std::size_t>(home.file)].name); }

  void read_config() {
    HuggingFaceConfig config = parse_huggingface_config(folder_.read(kConfigName, kMaxJsonBytes), where(kConfigName));
    model_ = config.model;
    auto about = nlohmann::ordered_json::parse(config.about);
    constexpr const char* kGeneration = "generation_config.json";
    if (folder_.has(kGeneration)) {
      about["generation_config"] = parse_json_object(folder_.read(kGeneration, kMaxJsonBytes), where(kGeneration));
    }
    manifest_.info.model = to_toml(model_);
    manifest_.info.huggingface = about.dump();
  }

  std::vector<ParameterSpec> declare() const {
    const std::int64_t layer = model_.is_moe() ? 7 + 3 * model_.experts : 9;
    if (layer > kMaxParameters / model_.layers) {
      fail(Status::input, "{}: num_hidden_layers is {} with {} tensors each, expected at most {} tensors",
           where(kConfigName), model_.layers, layer, kMaxParameters);
    }
    return Model::declare(model_, Groups::single());
  }

  void open_files() {
    if (folder_.has(kSingleName)) {
      open_file(kSingleName);
    } else if (folder_.has(kIndexName)) {
      const auto index = parse_safetensors_index(folder_.read(kIndexName, kMaxJsonBytes), where(kIndexName));
      std::set<std::string> names;
      for (const auto& [tensor, file] : index) names.insert(file);
      for (const std::string& name : names) open_file(name);
      for (const auto& [tensor, file] : index) {
        const auto home = homes_.find(tensor);
        if (home != homes_.end() && manifest_.files[static_cast<std::size_t>(home->second.file)].name == file) continue;
        fail(Status::input, "{}: says that tensor '{}' is in {}, where it isn't", where(kIndexName), shown(tensor),
             file);
      }
      for (const auto& [tensor, home] : homes_) {
        if (index.contains(tensor)) continue;
        fail(Status::input, "{}: holds tensor '{}', which {} doesn't know", where(home), shown(tensor), kIndexName);
      }
    } else {
      fail(Status::input, "{}: has neither {} nor {}: other formats than safetensors can't be read", path_.string(),
           kSingleName, kIndexName);
    }
  }

  void open_file(const std::string& name) {
    const int file = static_cast<int>(descriptors_.size());
    descriptors_.push_back(folder_.open(name));
    struct stat status {};
    ::fstat(descriptors_.back(), &status);
    manifest_.files.push_back({name, static_cast<std::uint64_t>(status.st_size), ""});
    for (SafetensorsEntry& entry : read_safetensors_header(descriptors_.back(), path_ / name)) {
      const auto [place, fresh] = homes_.try_emplace(entry.name);
      if (!fresh) fail(Status::input, "{}: tensor '{}' is in another file too", where(name), shown(entry.name));
      place->second = {std::move(entry), file};
    }
  }

  void add_parameter(const ParameterSpec& spec) {
    const std::vector<Place> places = places_of(spec, model_);
    for (const Place& place : places) {
      const auto found = homes_.find(place.tensor);
      if (found == homes_.end()) continue;
      Home& home = found->second;
      home.used = true;
      if (home.entry.shape != place.shape) {
        fail(Status::input, "{}: tensor '{}' has shape [{}], expected [{}] from {}", where(home), place.tensor,
             fmt::join(home.entry.shape, ", "), fmt::join(place.shape, ", "), kConfigName);
      }
      const DType dtype = dtype_of(home.entry, where(home));
      Shape origin = spec.shape;
      for (int dim = 0; dim < origin.dims(); ++dim) origin.set(dim, 0);
      const std::uint64_t offset = home.entry.offset + static_cast<std::uint64_t>(place.first * size_bytes(dtype));
      const SliceEntry slice{home.file, origin, spec.shape, place.tensor, offset, ""};
      manifest_.parameters.push_back({"weight", spec.name, dtype, spec.shape, {slice}});
      return;
    }
    fail(Status::input, "{}: tensor '{}' is missing{}", path_.string(), places.front().tensor,
         places.size() > 1 ? fmt::format(" ('{}' too)", places.back().tensor) : "");
  }

  // Tied models may hold the head a second time; transformers takes the embedding.
  void check_tied_head() {
    const auto head = homes_.find(huggingface_name("head"));
    if (!model_.tie_embeddings || head == homes_.end()) return;
    const Home& embedding = homes_.at(huggingface_name("embedding"));
    head->second.used = true;
    if (same_data(head->second, embedding)) return;
    fail(Status::input, "{}: tensor '{}' isn't '{}', but tie_word_embeddings in {} says so: set it to what is meant",
         where(head->second), head->first, embedding.entry.name, kConfigName);
  }

  bool same_data(const Home& a, const Home& b) const {
    if (a.entry.dtype != b.entry.dtype || a.entry.shape != b.entry.shape) return false;
    constexpr std::uint64_t kChunk = 4 << 20;
    std::vector<std::byte> left(kChunk), right(kChunk);
    for (std::uint64_t done = 0; done < a.entry.size_bytes; done += kChunk) {
      const auto count = static_cast<std::size_t>(std::min(kChunk, a.entry.size_bytes - done));
      read_at(descriptors_[static_cast<std::size_t>(a.file)], left.data(), count, a.entry.offset + done, where(a));
      read_at(descriptors_[static_cast<std::size_t>(b.file)], right.data(), count, b.entry.offset + done, where(b));
      if (std::memcmp(left.data(), right.data(), count) != 0) return false;
    }
    return true;
  }

  void check_all_used() const {
    std::size_t frequencies = 0;
    for (const auto& [name, home] : homes_) {
      if (home.used) continue;
      // Old files hold the rotary frequencies, which config.json determines; transformers leaves them out too.
      if (!name.ends_with(".rotary_emb.inv_freq")) {
        fail(Status::input, "{}: tensor '{}' doesn't belong to the model that {} describes", where(home), shown(name),
             kConfigName);
      }
      ++frequencies;
    }
    if (frequencies > 0) {
      log_info("{}: {} tensors rotary_emb.inv_freq aren't read: config.json determines them", path_.string(),
               frequencies);
    }
  }

  // A tokenizer is known by the digest of its main file (data/tokenizer.hpp). With both files in the folder, text may
  // have been made into tokens by either, so neither is asked for.
  void read_tokenizer() {
    for (const char* name : kTokenizerFiles) {
      if (!folder_.has(name)) continue;
      const std::string content = folder_.read(name, kMaxTokenizerBytes);
      manifest_.tokenizer_files.push_back({name, content.size(), digest(content)});
    }
    std::vector<std::string> digests;
    for (const AttachmentEntry& file : manifest_.tokenizer_files) {
      if (file.name == "tokenizer.json" || file.name == "tokenizer.model") digests.push_back(file.digest);
    }
    if (digests.size() == 1) manifest_.info.tokenizer_digest = digests.front();
  }

  fs::path path_;
  PlainFolder folder_;
  std::vector<int>& descriptors_;
  Manifest manifest_;
  ModelConfig model_;
  std::map<std::string, Home, std::less<>> homes_;
};

}  // namespace

bool is_huggingface(const fs::path& folder) {
  return fs::exists(folder / kConfigName) && !fs::exists(folder / kManifestName);
}

Manifest read_huggingface(const fs::path& folder, std::vector<int>& descriptors) {
  return FolderReader(folder, descriptors).read();
}

}  // namespace dropcycle
