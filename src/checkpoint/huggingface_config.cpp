// config.json to the model section and back.
#include <cmath>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>

#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/log.hpp"
#include "json_text.hpp"

namespace dropcycle {
namespace {

using Json = nlohmann::ordered_json;

// The classes of transformers that are known, with the values that they give to missing keys.
struct Architecture {
  const char *name, *model_type;
  bool experts;
  std::int64_t kv_heads;  // 0: as the query heads
  double norm_epsilon, rope_theta;
  std::int64_t positions, window;  // 0: no sliding window
};
constexpr Architecture kArchitectures[] = {
    {"LlamaForCausalLM", "llama", false, 0, 1e-6, 1e4, 2048, 0},
    {"MistralForCausalLM", "mistral", false, 8, 1e-6, 1e4, 131072, 4096},
    {"MixtralForCausalLM", "mixtral", true, 8, 1e-5, 1e6, 131072, 0},
};

// Keys that are kept for an export: they say nothing about the weights, or only about training.
constexpr const char* kKeptKeys[] = {"max_position_embeddings", "bos_token_id",        "eos_token_id", "pad_token_id",
                                     "attention_dropout",       "router_aux_loss_coef"};

constexpr std::int64_t kMaxSize = std::int64_t{1} << 40;

// config.json, whose complaints name file and key.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& json, const std::string& where, std::string prefix = "")
      : json_(json), where_(where), prefix_(std::move(prefix)) {}

  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    const nlohmann::json* value = find(key);
    fail(Status::input, "{}: {}{} is {}, expected {}", where_, prefix_, key,
         value == nullptr ? "missing" : shown(value->dump(-1, ' ', true)), expected);
  }
  // Null for a key that is missing or null.
  const nlohmann::json* find(const std::string& key) const {
    const auto place = json_.find(key);
    return place == json_.end() || place->is_null() ? nullptr : &*place;
  }
  std::int64_t integer(const std::string& key, std::optional<std::int64_t> missing = {}) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr && missing) return *missing;
    if (value == nullptr || !value->is_number_unsigned() || value->get<std::uint64_t>() > kMaxSize) {
      refuse(key, "a whole number from 0 on");
    }
    return value->get<std::int64_t>();
  }
  double number(const std::string& key, std::optional<double> missing = {}) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr && missing) return *missing;
    if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>())) refuse(key, "a number");
    return value->get<double>();
  }
  bool flag(const std::string& key, bool missing) const {
    const nlohmann::json* value = find(key);
    if (value != nullptr && !value->is_boolean()) refuse(key, "true or false");
    return value == nullptr ? missing : value->get<bool>();
  }
  std::string text(const std::string& key, const std::string& missing) const {
    const nlohmann::json* value = find(key);
    if (value != nullptr && !value->is_string()) refuse(key, "text");
    return value == nullptr ? missing : value->get<std::string>();
  }
  ConfigReader object(const std::string& key) const {
    if (!find(key)->is_object()) refuse(key, "an object");
    return {*find(key), where_, prefix_ + key + "."};
  }
  bool says(const std::string& key) const { return json_.contains(key); }  // null too

 private:
  const nlohmann::json& json_;
  const std::string& where_;
  std::string prefix_;
};

const Architecture& read_architecture(const ConfigReader& config) {
  const std::string known = "LlamaForCausalLM, MistralForCausalLM or MixtralForCausalLM (others can't be read)";
  const nlohmann::json* list = config.find("architectures");
  if (list == nullptr || !list->is_array() || list->size() != 1 || !list->front().is_string()) {
    config.refuse("architectures", "a list of one: " + known);
  }
  for (const Architecture& architecture : kArchitectures) {
    if (list->front() != architecture.name) continue;
    if (config.text("model_type", architecture.model_type) != architecture.model_type) {
      config.refuse("model_type", fmt::format("'{}' as architectures says", architecture.model_type));
    }
    return architecture;
  }
  config.refuse("architectures", known);
}

// What changes the numbers of transformers' model and doesn't exist in ours.
void refuse_unsupported(const ConfigReader& config) {
  const std::string activation = config.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")
    config.refuse("hidden_act", "\"silu\": no other activation is there");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (config.flag(key, false)) config.refuse(key, "false: biases aren't supported");
  }
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (config.find(key) != nullptr) config.refuse(key, "none: take the model that isn't quantized");
  }
  if (config.find("per_layer_config") != nullptr) config.refuse("per_layer_config", "none: layers must be alike");
  const nlohmann::json* code = config.find("auto_map");
  if (code != nullptr && (!code->is_object() || code->contains("AutoModelForCausalLM"))) {
    config.refuse("auto_map", "none: the model is computed by code of its own");
  }
  if (config.number("partial_rotary_factor", 1.0) != 1) {
    config.refuse("partial_rotary_factor", "1: heads are turned as a whole");
  }
  const nlohmann::json* types = config.find("layer_types");
  if (types == nullptr) return;
  const bool full = types->is_array() && std::all_of(types->begin(), types->end(), [](const nlohmann::json& type) {
                      return type == "full_attention";
                    });
  if (!full) config.refuse("layer_types", "full_attention in every layer");
}

// Tokens that a token attends to, 0 for all. A window as long as the longest sequence hides nothing.
std::int64_t read_window(const ConfigReader& config, const Architecture& architecture, std::int64_t positions) {
  if (architecture.model_type == std::string_view("llama")) return 0;
  if (config.find("sliding_window") == nullptr && (config.says("sliding_window") || architecture.window == 0)) return 0;
  const std::int64_t window = config.integer("sliding_window", architecture.window);
  if (window == 0) config.refuse("sliding_window", "null or at least 1");
  return window < positions ? window : 0;
}

struct Rope {
  double theta = 0;
  std::string scaling = "none";
  double factor = 1, low = 1, high = 4;
  std::int64_t original = 8192;
  bool operator==(const Rope&) const = default;
};

// The object under rope_scaling or rope_parameters.
Rope read_rope(const ConfigReader& config, const ConfigReader& rope, double theta, std::int64_t positions) {
  Rope result;
  result.theta = rope.number("rope_theta", theta);
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  if (type != rope.text("type", type)) rope.refuse("type", fmt::format("'{}' as rope_type says", shown(type)));
  if (rope.number("partial_rotary_factor", 1.0) != 1) {
    rope.refuse("partial_rotary_factor", "1: heads are turned as a whole");
  }
  if (rope.find("mrope_section") != nullptr) rope.refuse("mrope_section", "none: places are numbers here");
  for (const char* layers : {"full_attention", "sliding_attention"}) {
    if (rope.find(layers) != nullptr) rope.refuse(layers, "none: layers must be alike");
  }
  if (type == "default") return result;
  if (type != "linear" && type != "llama3") {
    rope.refuse(rope.find("rope_type") != nullptr ? "rope_type" : "type",
                "default, linear or llama3 (no other scaling)");
  }
  result.scaling = type;
  result.factor = rope.number("factor");
  if (type == "linear") return result;
  result.low = rope.number("low_freq_factor");
  result.high = rope.number("high_freq_factor");
  // transformers 5 gives a key beside the object precedence.
  const std::int64_t inside = rope.integer("original_max_position_embeddings", positions);
  result.original = config.integer("original_max_position_embeddings", inside);
  return result;
}

Rope read_rope(const ConfigReader& config, const Architecture& architecture, std::int64_t positions) {
  const double theta = config.number("rope_theta", architecture.rope_theta);
  std::optional<Rope> result;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (config.find(key) == nullptr) continue;
    const Rope rope = read_rope(config, config.object(key), theta, positions);
    if (config.find("rope_theta") != nullptr && rope.theta != theta) {
      config.refuse("rope_theta", fmt::format("{} as {} says", rope.theta, key));
    }
    if (result && *result != rope) config.refuse("rope_scaling", "the same as rope_parameters");
    result = rope;
  }
  return result.value_or(Rope{.theta = theta});
}

void take_rope(const Rope& rope, ModelConfig& model) {
  model.rope_theta = rope.theta;
  model.rope_scaling = rope.scaling;
  model.rope_factor = rope.factor;
  model.rope_low_frequency_factor = rope.low;
  model.rope_high_frequency_factor = rope.high;
  model.rope_original_positions = rope.original;
}

Json rope_scaling(const ModelConfig& model) {
  if (model.rope_scaling == "none") return nullptr;
  if (model.rope_scaling == "linear") return {{"rope_type", "linear"}, {"factor", model.rope_factor}};
  return {{"rope_type", "llama3"},
          {"factor", model.rope_factor},
          {"low_freq_factor", model.rope_low_frequency_factor},
          {"high_freq_factor", model.rope_high_frequency_factor},
          {"original_max_position_embeddings", model.rope_original_positions}};
}

Json kept_keys(const ConfigReader& config, const nlohmann::json& json, std::int64_t positions) {
  const auto is_number = [](const nlohmann::json& value) { return value.is_number(); };
  Json kept = {{"max_position_embeddings", positions}};
  for (const char* key : kKeptKeys) {
    if (!json.contains(key)) continue;
    const nlohmann::json& value = json.at(key);
    const bool list = value.is_array() && std::all_of(value.begin(), value.end(), is_number);
    if (!list && !value.is_null() && !value.is_number()) config.refuse(key, "a number, a list of numbers or null");
    kept[key] = value;
  }
  return kept;
}

const char* torch_name(DType dtype) {
  return dtype == DType::bf16 ? "bfloat16" : dtype == DType::f16 ? "float16" : "float32";
}

// The class of transformers that holds the model: the one that it came from, where that fits.
const Architecture& architecture_of(const ModelConfig& model, const Json& about) {
  for (const Architecture& architecture : kArchitectures) {
    if (about.value("architecture", "") == architecture.name && architecture.experts == model.is_moe()) {
      return architecture;
    }
  }
  return kArchitectures[model.is_moe() ? 2 : model.attention_window > 0 ? 1 : 0];
}

}  // namespace

HuggingFaceConfig parse_huggingface_config(std::string_view text, const std::string& where) {
  const nlohmann::json json = parse_json_object(text, where);
  const ConfigReader config(json, where);
  const Architecture& architecture = read_architecture(config);
  refuse_unsupported(config);
  const std::int64_t positions = config.integer("max_position_embeddings", architecture.positions);
  ModelConfig model;
  model.vocab_size = config.integer("vocab_size");
  model.hidden_size = config.integer("hidden_size");
  model.intermediate_size = config.integer("intermediate_size");
  model.layers = config.integer("num_hidden_layers");
  model.heads = config.integer("num_attention_heads");
  const std::int64_t kv_heads = config.says("num_key_value_heads") ? 0 : architecture.kv_heads;  // null: as heads
  model.kv_heads = config.integer("num_key_value_heads", kv_heads);
  model.head_size = config.integer("head_dim", 0);
  if (architecture.experts) {
    model.experts = config.integer("num_local_experts", 8);
    model.experts_per_token = config.integer("num_experts_per_tok", 2);
    if (model.experts == 0) config.refuse("num_local_experts", "at least 1");
  }
  take_rope(read_rope(config, architecture, positions), model);
  model.attention_window = read_window(config, architecture, positions);
  model.norm_epsilon = config.number("rms_norm_eps", architecture.norm_epsilon);
  model.init_std = config.number("initializer_range", 0.02);
  model.tie_embeddings = config.flag("tie_word_embeddings", false);
  try {
    resolve(model);
  } catch (const Error& error) {
    fail(Status::input, "{}: {}", where, error.what());
  }
  if (config.number("attention_dropout", 0.0) != 0) {
    log_warning("{}: attention_dropout is {}: it is kept for an export, but training here has no dropout", where,
                config.number("attention_dropout"));
  }
  return {model, Json{{"architecture", architecture.name}, {"config", kept_keys(config, json, positions)}}.dump()};
}

std::vector<std::int32_t> end_tokens(const std::string& about_text, const std::string& where) {
  if (about_text.empty()) return {};
  const nlohmann::json about = nlohmann::json::parse(about_text);
  for (const char* section : {"generation_config", "config"}) {
    const nlohmann::json config = about.value(section, nlohmann::json::object());
    const nlohmann::json ids = config.value("eos_token_id", nlohmann::json());
    if (ids.is_null()) continue;
    std::vector<std::int32_t> result;
    for (const nlohmann::json& id : ids.is_array() ? ids : nlohmann::json::array({ids})) {
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max()) {
        ConfigReader(config, where).refuse("eos_token_id", "a token or a list of tokens");
      }
      result.push_back(id.get<std::int32_t>());
    }
    return result;
  }
  return {};
}

std::string huggingface_config(const ModelConfig& model, const std::string& about_text, DType dtype) {
  if (model.is_moe() && model.router_mode != "topk_softmax") {
    fail(Status::input,
         "model.router_mode is '{}', which transformers' Mixtral doesn't compute: only 'topk_softmax' can be exported",
         model.router_mode);
  }
  const Json about = Json::parse(about_text);
  const Architecture& architecture = architecture_of(model, about);
  const bool llama = architecture.model_type == std::string_view("llama");
  if (llama && model.hidden_size % model.heads != 0) {
    fail(Status::input,
         "model.hidden_size is {}, not a multiple of model.heads ({}), which transformers' Llama asks for: this model "
         "can't be exported",
         model.hidden_size, model.heads);
  }
  Json config = {{"architectures", {architecture.name}},
                 {"model_type", architecture.model_type},
                 {"vocab_size", model.vocab_size},
                 {"hidden_size", model.hidden_size},
                 {"intermediate_size", model.intermediate_size},
                 {"num_hidden_layers", model.layers},
                 {"num_attention_heads", model.heads},
                 {"num_key_value_heads", model.kv_heads},
                 {"head_dim", model.head_size},
                 {"hidden_act", "silu"},
                 {"rms_norm_eps", model.norm_epsilon},
                 {"initializer_range", model.init_std},
                 {"rope_theta", model.rope_theta},
                 {"rope_scaling", rope_scaling(model)},
                 {"tie_word_embeddings", model.tie_embeddings},
                 {"torch_dtype", torch_name(dtype)}};
  if (llama) {
    config["attention_bias"] = false;
    config["mlp_bias"] = false;
  } else {
    config["sliding_window"] = model.attention_window > 0 ? Json(model.attention_window) : Json();
  }
  if (model.is_moe()) {
    config["num_local_experts"] = model.experts;
    config["num_experts_per_tok"] = model.experts_per_token;
  }
  const Json kept = about.value("config", Json::object());
  if (!kept.contains("max_position_embeddings")) {
    log_warning("the checkpoint doesn't say how long its sequences were: max_position_embeddings {} is written",
                architecture.positions);
    config["max_position_embeddings"] = architecture.positions;
  }
  config.update(kept);
  return config.dump(2) + "\n";
}

}  // namespace dropcycle
