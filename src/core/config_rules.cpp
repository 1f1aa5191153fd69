// Rules between keys; bounds of single keys stand in the schema.
#include <algorithm>
#include <functional>
#include <set>

#include "config_schema.hpp"
#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

// Each key's own bounds, for values that came from code rather than from a file.
void check_bounds(Config& config, std::string_view prefix) {
  for (const auto& key : schema::config_keys()) {
    if (!key.name.starts_with(prefix)) continue;
    const std::string problem = schema::complaint(key.field(config), key.bounds, key.choices);
    if (!problem.empty()) fail(Status::usage, "{} {}", key.name, problem);
  }
}

void check_rope(const ModelConfig& model) {
  if (model.rope_scaling == "none" && model.rope_factor != 1) {
    fail(Status::usage, "model.rope_factor is {}, but model.rope_scaling is 'none': choose 'linear' or 'llama3'",
         model.rope_factor);
  }
  if (!(model.rope_low_frequency_factor < model.rope_high_frequency_factor)) {
    fail(Status::usage, "model.rope_low_frequency_factor is {}, expected below model.rope_high_frequency_factor ({})",
         model.rope_low_frequency_factor, model.rope_high_frequency_factor);
  }
}

void resolve_model(ModelConfig& model) {
  if (model.kv_heads == 0) model.kv_heads = model.heads;
  if (model.heads % model.kv_heads != 0) {
    fail(Status::usage, "model.kv_heads is {}, expected a divisor of model.heads ({})", model.kv_heads, model.heads);
  }
  if (model.head_size == 0) {
    if (model.hidden_size % model.heads != 0) {
      fail(Status::usage, "model.heads is {}, expected a divisor of model.hidden_size ({}), or set model.head_size",
           model.heads, model.hidden_size);
    }
    model.head_size = model.hidden_size / model.heads;
  }
  if (model.head_size % 2 != 0) {
    fail(Status::usage, "model.head_size is {}, expected an even number: rotary positions turn pairs of values",
         model.head_size);
  }
  check_rope(model);
  if (model.is_moe() && model.experts_per_token > model.experts) {
    fail(Status::usage, "model.experts_per_token is {}, expected at most model.experts ({})", model.experts_per_token,
         model.experts);
  }
}

void check_init(const Config& config) {
  const InitConfig& init = config.init;
  const bool fresh = init.method == "scratch";
  if (!fresh && init.from.empty()) {
    fail(Status::usage, "init.from is empty, expected a checkpoint folder: init.method is '{}'", init.method);
  }
  if (fresh && !init.from.empty()) {
    fail(Status::usage, "init.from is '{}', but init.method is 'scratch', which reads no checkpoint: choose a method",
         init.from);
  }
  const bool upcycles = init.method == "naive" || init.method == "drop" || init.method == "noise";
  if (upcycles && !config.model.is_moe()) {
    fail(Status::usage, "init.method is '{}', which makes experts, but model.experts is 0: set model.experts",
         init.method);
  }
}

void check_sources(const std::vector<SourceConfig>& sources, std::string_view key, bool mixed) {
  std::set<std::string> names;
  for (const SourceConfig& source : sources) {
    if (source.name.empty()) fail(Status::usage, "{}.name is empty, expected a name for each source", key);
    if (!names.insert(source.name).second) {
      fail(Status::usage, "{}.name '{}' is there twice, expected different names", key, source.name);
    }
    if (source.shards.empty()) {
      fail(Status::usage, "{}.shards of '{}' is empty, expected at least one file", key, source.name);
    }
    if (!mixed) continue;
    if ((source.weight > 0) == (source.tokens > 0)) {
      fail(Status::usage, "{} source '{}' has weight {} and tokens {}, expected exactly one of them above 0", key,
           source.name, source.weight, source.tokens);
    }
    if ((source.tokens > 0) != (sources.front().tokens > 0)) {
      fail(Status::usage, "{} source '{}' and '{}' mix weight and tokens, expected the same for all sources", key,
           source.name, sources.front().name);
    }
  }
}

void check_training(const Config& config) {
  const TrainConfig& train = config.train;
  if (train.global_batch % train.micro_batch != 0) {
    fail(Status::usage, "train.micro_batch is {}, expected a divisor of train.global_batch ({})", train.micro_batch,
         train.global_batch);
  }
  const OptimizerConfig& optimizer = config.optimizer;
  if (!(optimizer.min_learning_rate <= optimizer.learning_rate)) {
    fail(Status::usage, "optimizer.min_learning_rate is {}, expected at most optimizer.learning_rate ({})",
         optimizer.min_learning_rate, optimizer.learning_rate);
  }
  if (train.steps > 0 && optimizer.warmup_steps + optimizer.constant_steps > train.steps) {
    fail(Status::usage,
         "optimizer.warmup_steps ({}) + optimizer.constant_steps ({}), expected at most train.steps ({})",
         optimizer.warmup_steps, optimizer.constant_steps, train.steps);
  }
  if (config.device.compute_dtype == "f64" && config.device.backend != "reference") {
    fail(Status::usage, "device.compute_dtype is 'f64', which only device.backend 'reference' computes, not '{}'",
         config.device.backend);
  }
  if (config.device.cuda_graphs && config.device.backend != "cuda") {
    fail(Status::usage, "device.cuda_graphs is true, expected false: device.backend is '{}'", config.device.backend);
  }
}

void check_pipeline(const ParallelConfig& parallel) {
  const bool interleaved = parallel.schedule == "interleaved";
  if (interleaved && (parallel.pipeline == 1 || parallel.virtual_stages == 1)) {
    fail(Status::usage,
         "parallel.schedule is 'interleaved' with pipeline {} and virtual_stages {}, expected at least 2 of both: "
         "choose "
         "'1f1b'",
         parallel.pipeline, parallel.virtual_stages);
  }
  if (!interleaved && parallel.virtual_stages > 1) {
    fail(Status::usage, "parallel.virtual_stages is {}, expected 1: parallel.schedule is '{}', not 'interleaved'",
         parallel.virtual_stages, parallel.schedule);
  }
}

// In a sequence that isn't longer, a window hides nothing.
void check_window(const Config& config) {
  const std::int64_t window = config.model.attention_window, length = config.data.sequence_length;
  if (window == 0 || length <= window) return;
  fail(Status::usage,
       "data.sequence_length is {}, expected at most model.attention_window ({}): sliding windows shorter than the "
       "sequence aren't supported",
       length, window);
}

// A sequence is cut into two parts a context rank.
void check_context(const Config& config) {
  const std::int64_t parts = 2 * std::int64_t{config.parallel.context}, length = config.data.sequence_length;
  if (config.parallel.context == 1 || length % parts == 0) return;
  const std::int64_t below = length / parts * parts;
  fail(Status::usage,
       "data.sequence_length is {}, expected a multiple of 2 * parallel.context ({}): choose {} or {}, or another "
       "parallel.context",
       length, parts, std::max(below, parts), std::max(below, parts) + parts);
}

// "2 or 4": the numbers of ranks next to `size`, below and above up to `most`, that fit. One rank always fits.
std::string nearest_ranks(std::int64_t size, std::int64_t most, const std::function<bool(std::int64_t)>& fits) {
  std::int64_t below = size - 1, above = size + 1;
  while (below > 1 && !fits(below)) --below;
  while (above <= most && !fits(above)) ++above;
  return above <= most ? fmt::format("{} or {}", below, above) : fmt::format("{}", below);
}

// What a number of tensor ranks breaks, or nothing.
std::string tensor_complaint(const Config& config, std::int64_t ranks) {
  const ModelConfig& model = config.model;
  const std::int64_t tokens = config.train.micro_batch * config.data.sequence_length / config.parallel.context;
  if (model.heads % ranks != 0) return fmt::format("expected a divisor of model.heads ({})", model.heads);
  if (model.kv_heads % ranks != 0 && ranks % model.kv_heads != 0) {
    return fmt::format("expected a divisor or a multiple of model.kv_heads ({})", model.kv_heads);
  }
  if (!model.is_moe() && model.intermediate_size % ranks != 0) {
    return fmt::format("expected a divisor of model.intermediate_size ({})", model.intermediate_size);
  }
  if (tokens % ranks != 0) {
    return fmt::format(
        "expected a divisor of train.micro_batch * data.sequence_length / parallel.context ({}), the rows of a "
        "microbatch",
        tokens);
  }
  if ((ranks - 1) * ((model.vocab_size + ranks - 1) / ranks) >= model.vocab_size) {
    return fmt::format("expected so few that each has rows of model.vocab_size ({})", model.vocab_size);
  }
  return "";
}

void check_tensor(const Config& config) {
  const std::int64_t ranks = config.parallel.tensor;
  if (ranks == 1) return;
  const std::string complaint = tensor_complaint(config, ranks);
  if (complaint.empty()) return;
  fail(Status::usage, "parallel.tensor is {}, {}: choose {}", ranks, complaint,
       nearest_ranks(ranks, config.model.heads,
                     [&](std::int64_t other) { return tensor_complaint(config, other).empty(); }));
}

// `ranks` share the experts, or `size` of each.
void check_expert_axis(const Config& config, const char* key, std::int64_t ranks, const char* size_key,
                       std::int64_t size) {
  if (ranks == 1) return;
  if (!config.model.is_moe()) fail(Status::usage, "parallel.{} is {}, expected 1: model.experts is 0", key, ranks);
  if (size % ranks == 0) return;
  fail(Status::usage, "parallel.{} is {}, expected a divisor of model.{} ({}): choose {}", key, ranks, size_key, size,
       nearest_ranks(ranks, size, [size](std::int64_t other) { return size % other == 0; }));
}

void check_parallel(const Config& config) {
  const ModelConfig& model = config.model;
  check_pipeline(config.parallel);
  check_context(config);
  check_tensor(config);
  check_expert_axis(config, "expert", config.parallel.expert, "experts", model.experts);
  check_expert_axis(config, "expert_tensor", config.parallel.expert_tensor, "intermediate_size",
                    model.intermediate_size);
  if (config.parallel.overlap_dispatch && config.parallel.expert == 1) {
    fail(Status::usage, "parallel.overlap_dispatch is true, expected false: parallel.expert is 1, so no row travels");
  }
}

}  // namespace

void resolve(ModelConfig& model) {
  Config config;
  config.model = model;
  check_bounds(config, "model.");
  resolve_model(config.model);
  model = config.model;
}

void resolve(Config& config) {
  check_bounds(config, "");
  resolve_model(config.model);
  check_init(config);
  check_sources(config.data.train, "data.train", true);
  check_sources(config.data.valid, "data.valid", false);
  check_training(config);
  check_window(config);
  check_parallel(config);
}

}  // namespace dropcycle
