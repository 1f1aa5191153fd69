// Models as Hugging Face's transformers keeps them: a folder with config.json, generation_config.json, one
// model.safetensors or several with an index, and the tokenizer's files.
//
// Known architectures: LlamaForCausalLM and MistralForCausalLM (dense), MixtralForCausalLM (experts). Their rotary
// positions turn the same pairs of values as ours and their matrices are [out, in] too, so weights go over as they are:
//
//   ours                        theirs (of layer N below model.layers.N.)
//   embedding                   model.embed_tokens.weight
//   attention_norm              input_layernorm.weight
//   attention.query/key/value   self_attn.q_proj/k_proj/v_proj.weight
//   attention.output            self_attn.o_proj.weight
//   mlp_norm                    post_attention_layernorm.weight
//   mlp.gate/up/down            mlp.gate_proj/up_proj/down_proj.weight
//   moe.router                  block_sparse_moe.gate.weight              or mlp.gate.weight
//   moe.experts.E.gate/up       block_sparse_moe.experts.E.w1/w3.weight   or mlp.experts.gate_up_proj [E, 2 F, H]
//   moe.experts.E.down          block_sparse_moe.experts.E.w2.weight      or mlp.experts.down_proj [E, H, F]
//   final_norm                  model.norm.weight
//   head                        lm_head.weight
//
// The second names are those that transformers 5 holds in memory and may write; the first ones load in 4 and 5.
// Mixtral's router takes softmax over all E logits, keeps the K largest and divides them by their sum. That is the
// softmax over the K largest logits: router_mode "topk_softmax".
//
// Checkpoint::open (checkpoint.hpp) reads such a folder as it is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dropcycle/checkpoint/checkpoint.hpp"
#include "dropcycle/core/config.hpp"

namespace dropcycle {

struct HuggingFaceConfig {
  ModelConfig model;
  // CheckpointInfo::huggingface without generation_config: what config.json says beyond the model.
  std::string about;
};

// config.json as transformers 4 (rope_theta, rope_scaling, torch_dtype) and 5 (rope_parameters, dtype) write it; keys
// that are missing have the values that transformers gives them. Throws Error{input} that begins with `where` and names
// the key for everything that would change what the model computes and isn't known here: another architecture, biases,
// another activation, another scaling of positions, quantization.
// Keys that transformers doesn't look at either are ignored.
HuggingFaceConfig parse_huggingface_config(std::string_view text, const std::string& where);

// config.json in the keys that transformers 4 and 5 both read; `dtype` is that of the weights. Throws Error{input} for
// a model that transformers can't hold: router_mode "softmax_topk", or a Llama whose hidden_size isn't a multiple of
// its heads.
std::string huggingface_config(const ModelConfig& model, const std::string& about, DType dtype);

// The tokens that end a text: eos_token_id, one or several, of generation_config.json, else of config.json; none where
// neither says. `about` is CheckpointInfo::huggingface. Throws Error{input} that begins with `where` for other values.
std::vector<std::int32_t> end_tokens(const std::string& about, const std::string& where);

// The name that transformers 4 and 5 both load of one of our parameters (the first of the table).
std::string huggingface_name(std::string_view parameter);

// Called with bytes done and bytes in all.
using ReportBytes = std::function<void(std::uint64_t, std::uint64_t)>;

// Writes a tokenizer's files into a folder.
using WriteTokenizer = std::function<void(const std::filesystem::path&)>;

// Copies a Hugging Face folder's weights, types unchanged, into a checkpoint with its tokenizer. Throws as
// CheckpointStream.
void import_model(Checkpoint& source, const std::filesystem::path& output, const WriteTokenizer& write_tokenizer = {},
                  const ReportBytes& report = {});

struct ExportOptions {
  std::optional<DType> dtype;                     // none: every tensor in the type that it is stored in
  std::uint64_t max_shard_bytes = 5'000'000'000;  // a larger tensor gets a file of its own
  WriteTokenizer write_tokenizer;                 // called before the folder takes its name
};

// Writes the weights of a checkpoint as a folder that AutoModelForCausalLM.from_pretrained loads. The folder appears as
// a whole or not at all. Throws Error{usage} if it exists and isn't empty, Error{input} for a model that transformers
// can't hold and for a number too large for f16, Error{storage} if it can't be written.
void export_model(Checkpoint& source, const std::filesystem::path& output, const ExportOptions& options,
                  const ReportBytes& report = {});

}  // namespace dropcycle
