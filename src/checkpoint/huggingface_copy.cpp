// A Hugging Face folder into a checkpoint, and a checkpoint into a Hugging Face folder.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "commit.hpp"
#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/checkpoint/safetensors.hpp"
#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/convert.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/model/model.hpp"
#include "json_text.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// One of our parameters as a tensor of a file that is to be written.
struct Outgoing {
  const ParameterEntry* source = nullptr;
  DType dtype = DType::f32;
  SafetensorsEntry entry;
};

std::vector<Outgoing> list_tensors(const Checkpoint& source, const ModelConfig& model, std::optional<DType> dtype) {
  std::vector<Outgoing> tensors;
  for (const ParameterSpec& spec : Model::declare(model, Groups::single())) {
    const ParameterEntry* parameter = source.find("weight", spec.name);
    if (parameter == nullptr || !(parameter->shape == spec.shape)) {
      fail(Status::input, "{}: has no weight {} of shape {}: it belongs to another model", source.folder().string(),
           spec.name, to_string(spec.shape));
    }
    Outgoing tensor{parameter, dtype.value_or(parameter->dtype), {}};
    tensor.entry.name = huggingface_name(spec.name);
    tensor.entry.dtype = safetensors_name(tensor.dtype);
    tensor.entry.shape.assign(spec.shape.sizes().begin(), spec.shape.sizes().end());
    tensor.entry.size_bytes = static_cast<std::uint64_t>(spec.shape.elements() * size_bytes(tensor.dtype));
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

// In the model's order, each file as full as it gets; wide types first, so that each tensor begins at a multiple of its
// element's size.
std::vector<std::vector<Outgoing>> cut_into_files(std::vector<Outgoing> tensors, std::uint64_t max_bytes) {
  std::vector<std::vector<Outgoing>> files;
  std::uint64_t bytes = 0;
  for (Outgoing& tensor : tensors) {
    if (files.empty() || bytes + tensor.entry.size_bytes > max_bytes) {
      files.emplace_back();
      bytes = 0;
    }
    bytes += tensor.entry.size_bytes;
    files.back().push_back(std::move(tensor));
  }
  for (std::vector<Outgoing>& file : files) {
    std::ranges::stable_sort(file, std::greater<>(), [](const Outgoing& tensor) { return size_bytes(tensor.dtype); });
  }
  return files;
}

// f16 ends at 65504: what is finite must stay so.
void check_range(const float* from, const F16* to, std::int64_t count, const std::string& tensor) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::isfinite(from[i]) && !std::isfinite(static_cast<float>(to[i]))) {
      fail(Status::input, "tensor '{}' holds {}, which f16 can't: export it as bf16 or f32", tensor, from[i]);
    }
  }
}

class Exporter {
 public:
  Exporter(Checkpoint& source, const fs::path& folder, const ReportBytes& report)
      : source_(source), folder_(folder), report_(report) {}

  void write(const std::vector<std::vector<Outgoing>>& files) {
    for (const auto& file : files) {
      for (const Outgoing& tensor : file) all_ += tensor.entry.size_bytes;
    }
    Json map = Json::object();
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::string name = files.size() == 1 ? "model.safetensors"
                                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
      write_file(name, files[i]);
      for (const Outgoing& tensor : files[i]) map[tensor.entry.name] = name;
    }
    if (files.size() == 1) return;
    const Json index = {{"metadata", {{"total_size", all_}}}, {"weight_map", std::move(map)}};
    dropcycle::write_file(folder_ / "model.safetensors.index.json", index.dump(2) + "\n");
  }

 private:
  void write_file(const std::string& name, const std::vector<Outgoing>& tensors) {
    std::vector<SafetensorsEntry> entries;
    for (const Outgoing& tensor : tensors) entries.push_back(tensor.entry);
    SafetensorsWriter writer(folder_ / name, std::move(entries));
    for (const Outgoing& tensor : tensors) {
      source_.stream(*tensor.source, [&](std::span<const std::byte> data) { append(writer, tensor, data); });
    }
    writer.finish();
  }

  void append(SafetensorsWriter& writer, const Outgoing& tensor, std::span<const std::byte> data) {
    const DType from = tensor.source->dtype;
    const std::int64_t count = static_cast<std::int64_t>(data.size()) / size_bytes(from);
    const auto bytes = static_cast<std::size_t>(count * size_bytes(tensor.dtype));
    if (from == tensor.dtype) {
      writer.append(data.data(), bytes);
    } else {
      converted_.resize(bytes);
      if (tensor.dtype == DType::f16) {
        single_.resize(static_cast<std::size_t>(count));
        convert(data.data(), from, single_.data(), DType::f32, count);
        convert(single_.data(), DType::f32, converted_.data(), DType::f16, count);
        check_range(single_.data(), reinterpret_cast<const F16*>(converted_.data()), count, tensor.entry.name);
      } else {
        convert(data.data(), from, converted_.data(), tensor.dtype, count);
      }
      writer.append(converted_.data(), bytes);
    }
    done_ += bytes;
    if (report_) report_(done_, all_);
  }

  Checkpoint& source_;
  const fs::path& folder_;
  const ReportBytes& report_;
  std::vector<std::byte> converted_;
  std::vector<float> single_;
  std::uint64_t done_ = 0, all_ = 0;
};

// generation_config.json: the imported one, or the ids that config.json names.
std::string generation_config(const Json& about) {
  Json config = about.value("generation_config", Json());
  if (config.is_null()) {
    config = {{"_from_model_config", true}};
    const Json& kept = about.value("config", Json::object());
    for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
      if (kept.contains(key)) config[key] = kept[key];
    }
  }
  return config.dump(2) + "\n";
}

// Takes "layers.3." off the front of `name`: "model.layers.3."; else "model.".
std::string take_prefix(std::string_view& name) {
  constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(kLayers)) return "model.";
  const std::size_t end = name.find('.', kLayers.size()) + 1;
  const std::string prefix = "model." + std::string(name.substr(0, end));
  name.remove_prefix(end);
  return prefix;
}

}  // namespace

std::string huggingface_name(std::string_view parameter) {
  static const std::map<std::string_view, std::string_view> kNames = {{"embedding", "embed_tokens"},
                                                                      {"final_norm", "norm"},
                                                                      {"attention_norm", "input_layernorm"},
                                                                      {"attention.query", "self_attn.q_proj"},
                                                                      {"attention.key", "self_attn.k_proj"},
                                                                      {"attention.value", "self_attn.v_proj"},
                                                                      {"attention.output", "self_attn.o_proj"},
                                                                      {"mlp_norm", "post_attention_layernorm"},
                                                                      {"mlp.gate", "mlp.gate_proj"},
                                                                      {"mlp.up", "mlp.up_proj"},
                                                                      {"mlp.down", "mlp.down_proj"},
                                                                      {"moe.router", "block_sparse_moe.gate"},
                                                                      {"gate", "w1"},
                                                                      {"up", "w3"},
                                                                      {"down", "w2"}};
  constexpr std::string_view kExperts = "moe.experts.";
  if (parameter == "head") return "lm_head.weight";
  std::string prefix = take_prefix(parameter);
  if (parameter.starts_with(kExperts)) {
    const std::size_t end = parameter.rfind('.') + 1;
    prefix += "block_sparse_moe.experts." + std::string(parameter.substr(kExperts.size(), end - kExperts.size()));
    parameter.remove_prefix(end);
  }
  const auto place = kNames.find(parameter);
  require(place != kNames.end(), "{} has no name in transformers", parameter);
  return prefix + std::string(place->second) + ".weight";
}

void import_model(Checkpoint& source, const fs::path& output, const WriteTokenizer& write_tokenizer,
                  const ReportBytes& report) {
  // In the order of the files' bytes.
  std::vector<const ParameterEntry*> parameters;
  for (const ParameterEntry& parameter : source.parameters()) parameters.push_back(&parameter);
  std::ranges::sort(parameters, {}, [](const ParameterEntry* parameter) {
    return std::pair(parameter->slices.front().file, parameter->slices.front().byte_offset);
  });
  std::vector<SliceSpec> slices;
  for (const ParameterEntry* parameter : parameters) {
    const SliceEntry& slice = parameter->slices.front();
    slices.push_back({parameter->kind, parameter->name, parameter->dtype, parameter->shape, slice.offset, slice.shape});
  }
  CheckpointStream stream(output, std::move(slices));
  const std::uint64_t all = source.data_bytes();
  std::uint64_t done = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    source.stream(*parameters[i], [&](std::span<const std::byte> data) {
      stream.append(i, data.data(), data.size());
      done += data.size();
      if (report) report(done, all);
    });
  }
  if (write_tokenizer) stream.add_tokenizer(write_tokenizer);
  CheckpointInfo info = source.info();
  const Json about = Json::parse(info.huggingface);
  info.origin = Json{{"method", "import"},
                     {"from", source.folder().string()},
                     {"architecture", about.at("architecture")},
                     {"digest", source.digest("weight")}}
                    .dump();
  stream.commit(info);
}

void export_model(Checkpoint& source, const fs::path& output, const ExportOptions& options, const ReportBytes& report) {
  const ModelConfig model = parse_model(source.info().model);
  const std::vector<Outgoing> tensors = list_tensors(source, model, options.dtype);
  const Json about = Json::parse(source.info().huggingface);
  // The type of the embedding is that of the model: others differ in norms and router at most.
  const std::string config = huggingface_config(model, source.info().huggingface, tensors.front().dtype);
  const auto files = cut_into_files(tensors, options.max_shard_bytes);
  OutputFolder folder(output);
  Exporter(source, folder.temporary(), report).write(files);
  write_file(folder.temporary() / "generation_config.json", generation_config(about));
  if (options.write_tokenizer) options.write_tokenizer(folder.temporary());
  write_file(folder.temporary() / "config.json", config);  // without it, it is no model
  folder.commit();
}

}  // namespace dropcycle
