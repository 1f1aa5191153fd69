// The one typed configuration schema. `dropcycle config` prints every key with meaning, unit and default; files are
// TOML; an unknown key or a wrong type is an error with file:line:column and the nearest known key.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace dropcycle {

struct ModelConfig {
  std::int64_t vocab_size = 0;         // V
  std::int64_t hidden_size = 0;        // H
  std::int64_t intermediate_size = 0;  // F
  std::int64_t layers = 0;             // L
  std::int64_t heads = 0;              // Nq
  std::int64_t kv_heads = 0;           // Nkv; 0: as heads
  std::int64_t head_size = 0;          // D; 0: H / Nq
  std::int64_t experts = 0;            // E; 0: dense
  std::int64_t experts_per_token = 2;  // K
  std::string router_mode = "topk_softmax";
  double rope_theta = 10000;
  std::string rope_scaling = "none";  // none, linear, llama3
  double rope_factor = 1;
  double rope_low_frequency_factor = 1, rope_high_frequency_factor = 4;  // llama3
  std::int64_t rope_original_positions = 8192;                           // llama3
  std::int64_t attention_window = 0;                                     // 0: none; longer sequences are refused
  double norm_epsilon = 1e-5;
  double init_std = 0.02;
  bool tie_embeddings = false;

  bool is_moe() const { return experts > 0; }
  bool operator==(const ModelConfig&) const = default;
};

struct InitConfig {
  std::string method = "scratch";     // scratch, checkpoint, naive, drop, noise
  std::string from;                   // checkpoint folder; dense for naive, drop, noise
  double ratio = 0.5;                 // r
  std::string index_sets = "shared";  // shared (the paper), per_matrix (the authors' released script)
  double noise_std = 0.02;
  std::string router = "normal_002";  // normal_002, normal_02887, uniform_002, uniform_05, uniform_01
  std::uint64_t seed = 1;

  bool operator==(const InitConfig&) const = default;
};

struct SourceConfig {
  std::string name;
  std::vector<std::string> shards;  // files or globs
  double weight = 0;                // share of the tokens; or
  std::int64_t tokens = 0;          // how many tokens in the run

  bool operator==(const SourceConfig&) const = default;
};

struct DataConfig {
  std::vector<SourceConfig> train, valid;
  std::string tokenizer;                // model file; its digest must be the shards'
  std::int64_t sequence_length = 1024;  // S
  bool reset_at_document_end = false;
  std::uint64_t seed = 1;

  bool operator==(const DataConfig&) const = default;
};

struct TrainConfig {
  std::string output;  // run folder
  std::int64_t steps = 0;
  std::int64_t global_batch = 1;        // sequences per step over all ranks
  std::int64_t micro_batch = 1;         // sequences per microbatch and rank, B
  std::string recompute = "selective";  // none, selective, full
  double balance_coefficient = 0.02;
  std::string balance_scope = "all_layers";  // all_layers, per_layer
  double z_coefficient = 0;
  double jitter = 0;
  std::int64_t log_interval = 1;
  std::int64_t eval_interval = 0;  // steps; 0: only before the first and after the last
  std::int64_t eval_batches = 0;   // sequences per source, 0: all
  std::uint64_t seed = 1;

  bool operator==(const TrainConfig&) const = default;
};

struct OptimizerConfig {
  double learning_rate = 3e-4, min_learning_rate = 3e-5;
  std::string schedule = "cosine";  // cosine, linear, constant
  std::int64_t warmup_steps = 0, constant_steps = 0;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1, clip = 1.0;
  bool decay_norms = true, decay_embeddings = true, decay_router = true;

  bool operator==(const OptimizerConfig&) const = default;
};

struct ParallelConfig {
  int tensor = 1, pipeline = 1, data = 0, expert = 1, expert_tensor = 1, context = 1;
  std::string schedule = "1f1b";  // 1f1b, interleaved, gpipe
  int virtual_stages = 1;
  std::vector<std::int64_t> pipeline_layers;  // empty: even
  std::int64_t bucket_bytes = 25 << 20;
  bool overlap_gradients = true, shard_optimizer = true, overlap_weights = false, overlap_dispatch = false;

  bool operator==(const ParallelConfig&) const = default;
};

struct CheckpointConfig {
  std::int64_t interval = 0;  // steps; 0: at the end only
  std::int64_t keep_last = 2;
  std::int64_t keep_every = 0;  // steps; 0: none
  bool asynchronous = true;

  bool operator==(const CheckpointConfig&) const = default;
};

struct DeviceConfig {
  std::string backend = "cpu";         // cpu, cuda, reference
  std::string compute_dtype = "auto";  // auto, bf16, f32, f64
  int threads = 0;
  bool cuda_graphs = false, deterministic = true;

  bool operator==(const DeviceConfig&) const = default;
};

struct Config {
  ModelConfig model;
  InitConfig init;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  DeviceConfig device;

  bool operator==(const Config&) const = default;
};

// A config file may name others first: `include = ["../model/x.toml"]` (paths relative to the file); later values win,
// lists as a whole. `overrides` are "section.key=value" with TOML values (text needs no quotes). Neither resolves.
// Throws Error{usage}, one line that starts with file:line:column or with "--set key=value", for what isn't TOML, for
// an unknown key (naming the nearest known one), a wrong type and a value out of its bounds; Error{input} if the file
// can't be read.
Config load_config(const std::filesystem::path& path, const std::vector<std::string>& overrides);
// The defaults with overrides only.
Config parse_config(const std::vector<std::string>& overrides);
// Fills kv_heads and head_size and checks every bound and every rule between keys. Throws Error{usage} naming the key.
// What only some verbs need (train.output, train.steps, sources, a tokenizer) may be missing.
void resolve(ModelConfig& model);
void resolve(Config& config);
// The whole configuration (resolved or not, but with a model) as TOML, which load_config reads back to the same values.
std::string to_toml(const Config& config);
// The model section alone, as it stands in checkpoints.
std::string to_toml(const ModelConfig& model);
ModelConfig parse_model(const std::string& toml);
// Table of every key: name, type, default, unit, meaning, allowed values (for `dropcycle config`).
std::string describe_config();
// "model.vocab_size", ...: every key, in the table's order.
std::vector<std::string> config_key_names();

}  // namespace dropcycle
