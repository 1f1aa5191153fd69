// safetensors headers, indices and config.json from elsewhere: what is read, and every refusal by its words.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <functional>

#include "checkpoint_support.hpp"
#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/checkpoint/safetensors.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

// The message of Error{input}, one line.
std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.status() == Status::input);
    return error.what();
  }
  return "no error";
}

void check_refused(const std::string& message, const std::string& words) {
  CHECK_MESSAGE(message.starts_with("FILE: "), message);
  CHECK_MESSAGE(message.find(words) != std::string::npos, message, " lacks ", words);
  CHECK_MESSAGE(message.find('\n') == std::string::npos, message);
}

void check_header_refused(const std::string& header, std::uint64_t data_bytes, const std::string& words) {
  check_refused(refusal([&] { parse_safetensors_header(header, data_bytes, "FILE"); }), words);
}

// A header with one tensor x that begins with `fields`.
std::string one(const std::string& fields) { return R"({"x":{)" + fields + "}}"; }

constexpr const char* kLlama = R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
  "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512)";

// A whole config.json: `head`, further keys, the end.
ModelConfig model_of(const std::string& keys, const std::string& head = kLlama) {
  return parse_huggingface_config(head + (keys.empty() ? "" : ", " + keys) + "}", "FILE").model;
}

std::string config_refusal(const std::string& keys, const std::string& head = kLlama) {
  return refusal([&] { model_of(keys, head); });
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

}  // namespace

TEST_CASE("a header gives its tensors in the order of their data") {
  const auto entries = parse_safetensors_header(
      R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"e":{"dtype":"I8","shape":[0],"data_offsets":[8,8]}}   )",
      20, "FILE");
  REQUIRE(entries.size() == 3);
  CHECK(entries[0].name == "a");
  CHECK(entries[1].name == "e");
  CHECK(entries[2].name == "b");
  CHECK(entries[2].shape == std::vector<std::int64_t>{2, 3});
  CHECK(entries[2].size_bytes == 12);
  CHECK(entries[2].offset == entries[0].offset + 8);
}

TEST_CASE("a header that isn't whole or lies is refused by name") {
  check_header_refused("", 0, "not a safetensors file");
  check_header_refused("[]", 0, "not a safetensors file");
  check_header_refused("{", 0, "isn't whole JSON");
  check_header_refused("{} {}", 0, "isn't whole JSON");
  check_header_refused("{\"\xff\":1}", 0, "isn't whole JSON");
  check_header_refused(R"({"x":)" + std::string(64, '[') + std::string(64, ']') + "}", 0, "nested deeper");
  check_header_refused(R"({"__metadata__":{"a":1}})", 0, "isn't an object of texts");
  check_header_refused(R"({"__metadata__":[]})", 0, "isn't an object of texts");
  check_header_refused(R"({"x\u001b[1m\n":1})", 0, "tensor 'x?[1m?': expected dtype, shape and data_offsets");
  check_header_refused(one(R"("dtype":"F32","shape":[1])"), 4, "expected dtype, shape and data_offsets");
  const std::string tail = R"("shape":[1],"data_offsets":[0,4])";
  check_header_refused(one(R"("dtype":"F32","more":1,)" + tail), 4, "nothing else");
  check_header_refused(one(R"("dtype":32,)" + tail), 4, "its dtype isn't text");
  check_header_refused(one(R"("dtype":"Q4_0",)" + tail), 4, "its dtype 'Q4_0' is unknown");
  check_header_refused(one(R"("dtype":"F32","shape":4,"data_offsets":[0,4])"), 4, "its shape isn't a list");
  check_header_refused(one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), 4, "at most 8");
  for (const std::string size : {"-1", "1.0", "1e3", "\"1\"", "null", "18446744073709551615", "9223372036854775808"}) {
    check_header_refused(one(R"("dtype":"F32","data_offsets":[0,4],"shape":[)" + size + "]"), 4, "a size is");
    check_header_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,)" + size + "]"), 4, "an offset is");
  }
  // 2^32 * 2^32 * 4 is 0 modulo 2^64.
  check_header_refused(one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0, "overflow");
  check_header_refused(one(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])"), 0, "overflow");
  check_header_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4, "bytes 4 to 0");
  check_header_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), 4, "isn't in the file's 4");
  check_header_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4, "aren't two numbers");
  check_header_refused(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4, "has 4 bytes");
  check_header_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), 5, "cut off, or with something added");
  check_header_refused(one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), 8, "begins at byte 4, expected 0");
  const std::string a = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)";
  check_header_refused(a + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "begins at byte 4");
  check_header_refused(a + R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16, "begins at byte 12");
  check_header_refused(a + R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, "has the key 'a' twice");
  check_header_refused(one(R"("dtype":"F32","dtype":"F32",)" + tail), 4, "has the key 'dtype' twice");
}

TEST_CASE("a file is refused where its header's length can't be") {
  const TestFolder folder;
  const auto path = folder.path() / "x.safetensors";
  const auto refused = [&](const std::string& content) {
    write_file(path, content);
    const int descriptor = ::open(path.c_str(), O_RDONLY);
    const std::string message = refusal([&] { read_safetensors_header(descriptor, path); });
    ::close(descriptor);
    return message;
  };
  CHECK(refused("1234567").find("less than 8 bytes") != std::string::npos);
  CHECK(refused(std::string("\3\0\0\0\0\0\0\0{}", 10)).find("says that its header has 3 bytes") != std::string::npos);
  CHECK(refused(std::string(8, '\xff') + "{}").find("says that its header has 18446744073709551615 bytes") !=
        std::string::npos);
  std::string large(8 + (17 << 20), ' ');
  const std::string size("\0\0\x10\1\0\0\0\0", 8);  // 17 MiB
  CHECK(refused(large.replace(0, 8, size)).find("expected at most 16777216") != std::string::npos);
  CHECK(refused(std::string("\2\0\0\0\0\0\0\0{}", 10)) == "no error");
}

TEST_CASE("an index names plain files alone") {
  const auto parse = [](const std::string& text) { return parse_safetensors_index(text, "FILE"); };
  const auto map = parse(R"({"metadata":{"total_size":1},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  CHECK(map.at("b") == "m-2.safetensors");
  const auto refused = [&](const std::string& text, const std::string& words) {
    check_refused(refusal([&] { parse(text); }), words);
  };
  refused("{}", "has no weight_map");
  refused(R"({"weight_map":[]})", "has no weight_map");
  refused(R"({"weight_map":{}})", "has no weight_map");
  refused(R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})", "has the key 'a' twice");
  for (const std::string name : {"../x.safetensors", "/etc/x.safetensors", "d/x.safetensors", ".x.safetensors", "x.bin",
                                 "", "..", "x\\\\y.safetensors", "x\\u0000.safetensors"}) {
    CAPTURE(name);
    refused(R"({"weight_map":{"a":")" + name + R"("}})", "tensor 'a' is in '");
  }
  refused(R"({"weight_map":{"a":1}})", "tensor 'a' is in '', expected a plain file name");
}

TEST_CASE("config.json in the keys of transformers 4 and 5 says the same") {
  const std::string scaling = R"("factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 256)";
  const ModelConfig old = model_of(R"("model_type": "llama", "num_key_value_heads": 2, "head_dim": 6, "rope_theta": 5e5,
    "torch_dtype": "bfloat16", "tie_word_embeddings": true, "rms_norm_eps": 1e-6, "rope_scaling": {"rope_type": "llama3", )" +
                                   scaling + "}");
  const ModelConfig fresh = model_of(R"("model_type": "llama", "num_key_value_heads": 2, "head_dim": 6,
    "dtype": "bfloat16", "tie_word_embeddings": true, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", )" +
                                     scaling + "}");
  CHECK(old == fresh);
  CHECK(old == ModelConfig{.vocab_size = 32,
                           .hidden_size = 16,
                           .intermediate_size = 24,
                           .layers = 2,
                           .heads = 4,
                           .kv_heads = 2,
                           .head_size = 6,
                           .rope_theta = 5e5,
                           .rope_scaling = "llama3",
                           .rope_factor = 8,
                           .rope_original_positions = 256,
                           .norm_epsilon = 1e-6,
                           .tie_embeddings = true});
  const ModelConfig linear = model_of(R"("rope_scaling": {"type": "linear", "factor": 2})");
  CHECK(linear.rope_scaling == "linear");
  CHECK(linear.rope_factor == 2);
  CHECK(linear == model_of(R"("rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})"));
  CHECK(model_of("").rope_scaling == "none");
  CHECK(model_of(R"("rope_scaling": null)") == model_of(R"("rope_parameters": {"rope_type": "default"})"));
}

TEST_CASE("missing keys have the values of transformers' classes") {
  const ModelConfig llama = model_of("");
  CHECK(llama.kv_heads == 4);
  CHECK(llama.head_size == 4);
  CHECK(llama.norm_epsilon == 1e-6);
  CHECK(llama.rope_theta == 1e4);
  CHECK(!llama.tie_embeddings);
  const std::string mistral =
      replaced(replaced(kLlama, "Llama", "Mistral"), "heads\": 4", "heads\": 16, \"head_dim\": 2");
  CHECK(model_of(R"("sliding_window": null)", mistral).kv_heads == 8);
  CHECK(model_of(R"("sliding_window": 512, "num_key_value_heads": null)", mistral).kv_heads == 16);
  CHECK(model_of(R"("sliding_window": 511)", mistral).attention_window == 511);
  CHECK(model_of(R"("sliding_window": 512)", mistral).attention_window == 0);  // hides nothing
  CHECK(model_of("", mistral).attention_window == 0);                          // 4096 for 512 positions
  CHECK(model_of("", replaced(mistral, "512", "32768")).attention_window == 4096);
  CHECK(model_of(R"("sliding_window": 5)").attention_window == 0);  // Llama has none
  CHECK(model_of("", mistral).norm_epsilon == 1e-6);
  const ModelConfig mixtral = model_of("", replaced(mistral, "Mistral", "Mixtral"));
  CHECK(mixtral.experts == 8);
  CHECK(mixtral.experts_per_token == 2);
  CHECK(mixtral.router_mode == "topk_softmax");
  CHECK(mixtral.rope_theta == 1e6);
  CHECK(mixtral.norm_epsilon == 1e-5);
}

TEST_CASE("what would change the model's numbers and isn't known is refused by name") {
  const auto refused = [](const std::string& keys, const std::string& words) {
    check_refused(config_refusal(keys), words);
  };
  refused(R"("attention_bias": true)", "attention_bias is true, expected false: biases aren't supported");
  refused(R"("mlp_bias": true)", "mlp_bias is true");
  refused(R"("mlp_bias": "no")", "mlp_bias is \"no\", expected true or false");
  refused(R"("hidden_act": "gelu")", "hidden_act is \"gelu\", expected \"silu\"");
  refused(R"("quantization_config": {"bits": 4})", "quantization_config is {\"bits\":4}, expected none");
  refused(R"("compression_config": {})", "compression_config is {}");
  refused(R"("per_layer_config": {"0": {}})", "per_layer_config");
  refused(R"("auto_map": {"AutoModelForCausalLM": "m.M"})", "auto_map");
  refused(R"("partial_rotary_factor": 0.5)", "partial_rotary_factor is 0.5, expected 1");
  refused(R"("layer_types": ["full_attention", "sliding_attention"])", "layer_types");
  for (const std::string type : {"dynamic", "yarn", "longrope", "proportional", "su"}) {
    refused(R"("rope_scaling": {"type": ")" + type + R"(", "factor": 2})", "rope_scaling.type is \"" + type + "\"");
    refused(R"("rope_parameters": {"rope_type": ")" + type + R"("})", "rope_parameters.rope_type is \"" + type + "\"");
  }
  refused(R"("rope_scaling": {"type": "linear"})", "rope_scaling.factor is missing");
  refused(R"("rope_scaling": {"rope_type": "llama3", "factor": 8})", "rope_scaling.low_freq_factor is missing");
  refused(R"("rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2})", "rope_scaling.type is \"yarn\"");
  refused(R"("rope_scaling": 2)", "rope_scaling is 2, expected an object");
  refused(R"("rope_parameters": {"partial_rotary_factor": 0.25})", "rope_parameters.partial_rotary_factor is 0.25");
  refused(R"("rope_parameters": {"mrope_section": [1]})", "rope_parameters.mrope_section");
  refused(R"("rope_parameters": {"full_attention": {}})", "rope_parameters.full_attention");
  refused(R"("rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e5})", "rope_theta is 10000.0, expected 100000");
  refused(R"("rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"})",
          "rope_scaling is");
  refused(R"("model_type": "gemma")", "model_type is \"gemma\", expected 'llama'");
  refused(R"("num_key_value_heads": 3)", "model.kv_heads is 3");
  refused(R"("head_dim": 3)", "model.head_size is 3, expected an even number");
  refused(R"("head_dim": -2)", "head_dim is -2, expected a whole number");
  refused(R"("rms_norm_eps": "small")", "rms_norm_eps is \"small\", expected a number");
  refused(R"("eos_token_id": {"a": 1})", "eos_token_id is {\"a\":1}");
  for (const std::string name : {"GemmaForCausalLM", "Qwen2ForCausalLM", "LlamaForSequenceClassification"}) {
    check_refused(config_refusal("", replaced(kLlama, "LlamaForCausalLM", name)),
                  "architectures is [\"" + name + "\"]");
  }
  check_refused(config_refusal("", "{\"vocab_size\": 3"), "architectures is missing");
  for (const std::string key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    check_refused(config_refusal("", replaced(kLlama, '"' + key + '"', '"' + key + "_\"")), key + " is missing");
  }
  check_refused(config_refusal("", replaced(kLlama, "\"vocab_size\": 32", "\"vocab_size\": 1.5")), "vocab_size is 1.5");
  check_refused(config_refusal("", replaced(kLlama, "layers\": 2", "layers\": 0")), "model.layers is 0");
  check_refused(config_refusal(R"("sliding_window": 0)", replaced(kLlama, "Llama", "Mixtral")), "sliding_window is 0");
  check_refused(config_refusal(R"("num_local_experts": 0)", replaced(kLlama, "Llama", "Mixtral")), "num_local_experts");
  check_refused(
      config_refusal(R"("num_key_value_heads": 4, "num_experts_per_tok": 9)", replaced(kLlama, "Llama", "Mixtral")),
      "model.experts_per_token is 9");
}

TEST_CASE("an exported config.json is read back to the same model") {
  for (const std::string name : {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"}) {
    const std::string window = name[0] == 'L' ? "" : R"("sliding_window": 100, )";
    for (const std::string rope :
         {R"("rope_theta": 12345.5)", R"("rope_scaling": {"type": "linear", "factor": 2.5})",
          R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1.5, "high_freq_factor": 4.5,
             "original_max_position_embeddings": 100})"}) {
      const std::string text = replaced(kLlama, "LlamaForCausalLM", name) +
                               R"(, "num_key_value_heads": 2, "eos_token_id": [2, 3], )" + window + rope + "}";
      const HuggingFaceConfig config = parse_huggingface_config(text, "FILE");
      const std::string exported = huggingface_config(config.model, config.about, DType::bf16);
      const HuggingFaceConfig again = parse_huggingface_config(exported, "FILE");
      CHECK(again.model == config.model);
      CHECK(again.model.attention_window == (window.empty() ? 0 : 100));
      CHECK(again.about == config.about);
      CHECK(exported.find(name) != std::string::npos);
      CHECK(exported.find("\"torch_dtype\": \"bfloat16\"") != std::string::npos);
    }
  }
}

TEST_CASE("the tokens that end a text: one or several, of generation_config.json before config.json") {
  const auto ends = [](const std::string& about) { return end_tokens(about, "FILE"); };
  const std::string config = R"("config": {"eos_token_id": 5})";
  CHECK(ends("").empty());
  CHECK(ends(R"({"config": {"eos_token_id": null}, "generation_config": {}})").empty());
  CHECK(ends("{" + config + "}") == std::vector{5});
  CHECK(ends("{" + config + R"(, "generation_config": {"eos_token_id": null}})") == std::vector{5});
  CHECK(ends("{" + config + R"(, "generation_config": {"eos_token_id": [7, 0, 9]}})") == std::vector{7, 0, 9});
  for (const std::string ids : {"-1", "1.5", "\"2\"", "[3, -4]", "[[3]]", "4294967296", "{}"}) {
    CAPTURE(ids);
    check_refused(refusal([&] { ends(R"({"generation_config": {"eos_token_id": )" + ids + "}}"); }),
                  "eos_token_id is ");
  }
}

TEST_CASE("what transformers can't hold isn't exported") {
  ModelConfig model = model_of("");
  model.experts = 4;
  model.router_mode = "softmax_topk";
  CHECK(refusal([&] { huggingface_config(model, "{}", DType::f32); }).find("model.router_mode is 'softmax_topk'") == 0);
  model = model_of("");
  model.hidden_size = 18;
  CHECK(refusal([&] { huggingface_config(model, "{}", DType::f32); }).find("model.hidden_size is 18") == 0);
}
