#include "config_schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace dropcycle::schema {
namespace {

template <auto Section, auto Member>
Field field(Config& config) {
  return &((config.*Section).*Member);
}
template <auto Member>
Field field(SourceConfig& source) {
  return &(source.*Member);
}

constexpr double kMostInteger = 9007199254740992.0;  // 2^53: integers up to here are exact in JSON readers
constexpr Bounds kPositive{1, kMostInteger};
constexpr Bounds kNotNegative{0, kMostInteger};
constexpr Bounds kCount{1, 1 << 20};
constexpr Bounds kUnit{0, 1};
constexpr Bounds kRate{0, 10};
constexpr Bounds kBelowOne{0, 1, false, true};

using Keys = std::vector<Key<Config>>;

template <auto Member>
constexpr auto model = &field<&Config::model, Member>;
template <auto Member>
constexpr auto init = &field<&Config::init, Member>;
template <auto Member>
constexpr auto data = &field<&Config::data, Member>;
template <auto Member>
constexpr auto train = &field<&Config::train, Member>;
template <auto Member>
constexpr auto optimizer = &field<&Config::optimizer, Member>;
template <auto Member>
constexpr auto parallel = &field<&Config::parallel, Member>;
template <auto Member>
constexpr auto checkpoint = &field<&Config::checkpoint, Member>;
template <auto Member>
constexpr auto device = &field<&Config::device, Member>;

void add_model(Keys& keys) {
  using C = ModelConfig;
  keys.insert(
      keys.end(),
      {{"model.vocab_size", model<&C::vocab_size>, "tokens", "V; at least the tokenizer's, padded as you like",
        kPositive},
       {"model.hidden_size", model<&C::hidden_size>, "", "H: width of the residual stream", kPositive},
       {"model.intermediate_size", model<&C::intermediate_size>, "", "F: width inside a feed-forward net or expert",
        kPositive},
       {"model.layers", model<&C::layers>, "", "L", kCount},
       {"model.heads", model<&C::heads>, "", "Nq: query heads", kCount},
       {"model.kv_heads", model<&C::kv_heads>, "", "Nkv: key/value heads, a divisor of heads; 0: as heads",
        Bounds{0, 1 << 20}},
       {"model.head_size", model<&C::head_size>, "", "D, even; 0: hidden_size / heads", Bounds{0, 1 << 20}},
       {"model.experts", model<&C::experts>, "", "E: experts per layer; 0: a dense model", Bounds{0, 1 << 20}},
       {"model.experts_per_token", model<&C::experts_per_token>, "", "K: experts that a token visits", kCount},
       {"model.router_mode",
        model<&C::router_mode>,
        "",
        "weights of the K experts: softmax over their logits (the paper's Eq. 3), or their part of a softmax "
        "over all E",
        {},
        {"topk_softmax", "softmax_topk"}},
       {"model.rope_theta", model<&C::rope_theta>, "", "base of the rotary angles", Bounds{1, 1e12}},
       {"model.rope_scaling",
        model<&C::rope_scaling>,
        "",
        "for contexts longer than the model was first trained with: all angles divided by rope_factor, or Llama "
        "3's rule that slows only long wavelengths",
        {},
        {"none", "linear", "llama3"}},
       {"model.rope_factor", model<&C::rope_factor>, "", "how much longer the context gets; 1 without scaling",
        Bounds{1, 1e6}},
       {"model.rope_low_frequency_factor", model<&C::rope_low_frequency_factor>, "",
        "llama3: waves longer than rope_original_positions / this are slowed by rope_factor", Bounds{0, 1e6, true}},
       {"model.rope_high_frequency_factor", model<&C::rope_high_frequency_factor>, "",
        "llama3: waves shorter than rope_original_positions / this stay", Bounds{0, 1e6, true}},
       {"model.rope_original_positions", model<&C::rope_original_positions>, "tokens",
        "llama3: the context that the model was first trained with", kPositive},
       {"model.attention_window", model<&C::attention_window>, "tokens",
        "a token attends to so many, itself and those before it (Mistral's sliding window); 0: to all. Longer "
        "sequences "
        "are refused: in others it hides nothing",
        Bounds{0, 1 << 24}},
       {"model.norm_epsilon", model<&C::norm_epsilon>, "", "added to the mean square in RMSNorm", Bounds{0, 1}},
       {"model.init_std", model<&C::init_std>, "", "standard deviation of fresh weights", Bounds{0, 10}},
       {"model.tie_embeddings", model<&C::tie_embeddings>, "", "the head uses the embedding's matrix"}});
}

void add_init(Keys& keys) {
  using C = InitConfig;
  keys.insert(
      keys.end(),
      {{"init.method",
        init<&C::method>,
        "",
        "fresh weights; a checkpoint's; or experts made of a dense checkpoint: copies (naive), copies with a part "
        "re-drawn (drop), copies with noise",
        {},
        {"scratch", "checkpoint", "naive", "drop", "noise"}},
       {"init.from", init<&C::from>, "folder", "the checkpoint to start from; a dense one for naive, drop and noise"},
       {"init.ratio", init<&C::ratio>, "", "r: share of F that drop re-draws (noise: disturbs)", kUnit},
       {"init.index_sets",
        init<&C::index_sets>,
        "",
        "one set of re-drawn indices for gate, up and down of an expert (the paper), or one per matrix (the authors' "
        "scripts)",
        {},
        {"shared", "per_matrix"}},
       {"init.noise_std", init<&C::noise_std>, "", "standard deviation of the noise of method noise", Bounds{0, 10}},
       {"init.router",
        init<&C::router>,
        "",
        "distribution of a new router: normal with standard deviation 0.02 or 0.2887, uniform with standard deviation "
        "0.02, in [-0.5, 0.5] or in [0, 1]",
        {},
        {"normal_002", "normal_02887", "uniform_002", "uniform_05", "uniform_01"}},
       {"init.seed", init<&C::seed>, "", "seed of all fresh weights and index sets", kNotNegative}});
}

void add_data(Keys& keys) {
  using C = DataConfig;
  keys.insert(keys.end(),
              {{"data.train", data<&C::train>, "", "[[data.train]] sources to train on"},
               {"data.valid", data<&C::valid>, "", "[[data.valid]] held-out sources, each evaluated by itself"},
               {"data.tokenizer", data<&C::tokenizer>, "file",
                "what the shards were made with: SentencePiece .model, tokenizer.json, or a folder with either"},
               {"data.sequence_length", data<&C::sequence_length>, "tokens", "S", Bounds{1, 1 << 24}},
               {"data.reset_at_document_end", data<&C::reset_at_document_end>, "",
                "attention and positions start anew at each document of a packed sequence"},
               {"data.seed", data<&C::seed>, "", "seed of the order of samples", kNotNegative}});
}

void add_train(Keys& keys) {
  using C = TrainConfig;
  keys.insert(
      keys.end(),
      {{"train.output", train<&C::output>, "folder", "the run: checkpoints, metrics, resolved configuration"},
       {"train.steps", train<&C::steps>, "steps", "optimizer steps in the whole run", kNotNegative},
       {"train.global_batch", train<&C::global_batch>, "sequences", "sequences per step over all ranks", kPositive},
       {"train.micro_batch", train<&C::micro_batch>, "sequences", "B: sequences per rank between gradient additions",
        kPositive},
       {"train.recompute",
        train<&C::recompute>,
        "",
        "what backward computes again instead of keeping: nothing, cheap parts, whole layers",
        {},
        {"none", "selective", "full"}},
       {"train.balance_coefficient", train<&C::balance_coefficient>, "", "weight of the load-balancing loss",
        Bounds{0, 1000}},
       {"train.balance_scope",
        train<&C::balance_scope>,
        "",
        "shares and probabilities averaged over all layers before their product (the paper), or a loss per layer",
        {},
        {"all_layers", "per_layer"}},
       {"train.z_coefficient", train<&C::z_coefficient>, "", "weight of the router's z-loss", Bounds{0, 1000}},
       {"train.jitter", train<&C::jitter>, "", "the router's input is multiplied by uniform [1 - jitter, 1 + jitter]",
        kBelowOne},
       {"train.log_interval", train<&C::log_interval>, "steps", "a line on the terminal every so many", kPositive},
       {"train.eval_interval", train<&C::eval_interval>, "steps",
        "held-out loss every so many; 0: only before the first and after the last", kNotNegative},
       {"train.eval_batches", train<&C::eval_batches>, "sequences", "of each held-out source; 0: all", kNotNegative},
       {"train.seed", train<&C::seed>, "", "seed of router jitter", kNotNegative}});
}

void add_optimizer(Keys& keys) {
  using C = OptimizerConfig;
  keys.insert(
      keys.end(),
      {{"optimizer.learning_rate", optimizer<&C::learning_rate>, "", "the highest, after warm-up", kRate},
       {"optimizer.min_learning_rate", optimizer<&C::min_learning_rate>, "", "where the decay ends", kRate},
       {"optimizer.schedule", optimizer<&C::schedule>, "", "shape of the decay", {}, {"cosine", "linear", "constant"}},
       {"optimizer.warmup_steps", optimizer<&C::warmup_steps>, "steps", "linear rise to learning_rate", kNotNegative},
       {"optimizer.constant_steps", optimizer<&C::constant_steps>, "steps", "at the end, at min_learning_rate",
        kNotNegative},
       {"optimizer.beta1", optimizer<&C::beta1>, "", "decay of AdamW's first moment", kBelowOne},
       {"optimizer.beta2", optimizer<&C::beta2>, "", "decay of AdamW's second moment", kBelowOne},
       {"optimizer.epsilon", optimizer<&C::epsilon>, "", "added to AdamW's denominator", Bounds{0, 1}},
       {"optimizer.weight_decay", optimizer<&C::weight_decay>, "", "decoupled decay, times the learning rate",
        Bounds{0, 10}},
       {"optimizer.clip", optimizer<&C::clip>, "", "largest global gradient norm; 0: no clipping", Bounds{0, 1e9}},
       {"optimizer.decay_norms", optimizer<&C::decay_norms>, "", "weight decay on norm scales too"},
       {"optimizer.decay_embeddings", optimizer<&C::decay_embeddings>, "", "weight decay on embeddings too"},
       {"optimizer.decay_router", optimizer<&C::decay_router>, "", "weight decay on routers too"}});
}

void add_parallel(Keys& keys) {
  using C = ParallelConfig;
  keys.insert(
      keys.end(),
      {{"parallel.tensor", parallel<&C::tensor>, "ranks", "TP: ranks that share each matrix", kCount},
       {"parallel.pipeline", parallel<&C::pipeline>, "ranks", "PP: ranks that share the layers", kCount},
       {"parallel.schedule",
        parallel<&C::schedule>,
        "",
        "order of a pipeline's microbatches: forward and backward in turns, the same with virtual_stages, or all "
        "forwards first",
        {},
        {"1f1b", "interleaved", "gpipe"}},
       {"parallel.virtual_stages", parallel<&C::virtual_stages>, "",
        "stretches of layers per stage of an interleaved pipeline", kCount},
       {"parallel.pipeline_layers", parallel<&C::pipeline_layers>, "layers",
        "of every stage (of every stretch, as a microbatch passes them, with virtual_stages); empty: even"},
       {"parallel.data", parallel<&C::data>, "ranks", "DP: replicas; 0: what the ranks leave", Bounds{0, 1 << 20}},
       {"parallel.expert", parallel<&C::expert>, "ranks", "EP: ranks that share the experts, a divisor of E", kCount},
       {"parallel.expert_tensor", parallel<&C::expert_tensor>, "ranks", "ETP: ranks that share each expert's matrices",
        kCount},
       {"parallel.context", parallel<&C::context>, "ranks", "CP: ranks that share a sequence", kCount},
       {"parallel.bucket_bytes", parallel<&C::bucket_bytes>, "bytes", "gradients reduced together",
        Bounds{1 << 10, 1LL << 40}},
       {"parallel.overlap_gradients", parallel<&C::overlap_gradients>, "", "reduce gradients during backward"},
       {"parallel.shard_optimizer", parallel<&C::shard_optimizer>, "",
        "ZeRO-1: replicas share master weights and moments"},
       {"parallel.overlap_weights", parallel<&C::overlap_weights>, "",
        "gather updated weights during the next forward (sharded optimizer)"},
       {"parallel.overlap_dispatch", parallel<&C::overlap_dispatch>, "",
        "half of a microbatch's rows travel while the experts compute the other half (EP > 1); no "
        "gain where two ranks share two cores"}});
}

void add_checkpoint(Keys& keys) {
  using C = CheckpointConfig;
  keys.insert(keys.end(),
              {{"checkpoint.interval", checkpoint<&C::interval>, "steps", "save every so many; 0: at the end only",
                kNotNegative},
               {"checkpoint.keep_last", checkpoint<&C::keep_last>, "", "newest checkpoints that stay", kPositive},
               {"checkpoint.keep_every", checkpoint<&C::keep_every>, "steps",
                "checkpoints of these steps stay too; 0: none", kNotNegative},
               {"checkpoint.asynchronous", checkpoint<&C::asynchronous>, "", "train on while a copy is written"}});
}

void add_device(Keys& keys) {
  using C = DeviceConfig;
  keys.insert(keys.end(),
              {{"device.backend",
                device<&C::backend>,
                "",
                "oneDNN; CUDA's libraries; or plain loops",
                {},
                {"cpu", "cuda", "reference"}},
               {"device.compute_dtype",
                device<&C::compute_dtype>,
                "",
                "type of weights and products; auto: bf16 where the processor multiplies it, else f32; f64: reference "
                "only",
                {},
                {"auto", "bf16", "f32", "f64"}},
               {"device.threads", device<&C::threads>, "threads", "per rank; 0: the cores, shared by its node's ranks",
                Bounds{0, 65536}},
               {"device.cuda_graphs", device<&C::cuda_graphs>, "",
                "launch each layer's dense part as one CUDA graph, recorded in the first steps"},
               {"device.deterministic", device<&C::deterministic>, "",
                "the same bits in every run on GPUs too, at the price of a slower attention backward pass"}});
}

Keys all_keys() {
  Keys keys;
  add_model(keys);
  add_init(keys);
  add_data(keys);
  add_train(keys);
  add_optimizer(keys);
  add_parallel(keys);
  add_checkpoint(keys);
  add_device(keys);
  return keys;
}

}  // namespace

std::span<const Key<Config>> config_keys() {
  static const Keys keys = all_keys();
  return keys;
}

std::span<const Key<SourceConfig>> source_keys() {
  using C = SourceConfig;
  static const std::vector<Key<SourceConfig>> keys = {
      {"name", &field<&C::name>, "", "what metrics and tables call it"},
      {"shards", &field<&C::shards>, "files", "token shards; * and ? stand for what the folder holds"},
      {"weight", &field<&C::weight>, "", "share of the tokens, relative to the other sources; or", Bounds{0, 1e12}},
      {"tokens", &field<&C::tokens>, "tokens", "how many of the run's tokens", kNotNegative}};
  return keys;
}

std::string type_name(const Field& field) {
  static constexpr std::string_view kNames[] = {
      "true or false", "whole number",  "whole number",          "whole number",  "number",
      "text",          "list of texts", "list of whole numbers", "list of tables"};
  return std::string(kNames[field.index()]);
}

std::string allowed_text(const Bounds& bounds, const std::vector<std::string>& choices) {
  if (!choices.empty()) return fmt::format("one of '{}'", fmt::join(choices, "', '"));
  if (std::isinf(bounds.least)) return "";
  if (bounds.most == kMostInteger) return fmt::format("at least {}", bounds.least);
  return fmt::format("in {}{}, {}{}", bounds.above ? '(' : '[', bounds.least, bounds.most, bounds.below ? ')' : ']');
}

std::string complaint(const Field& field, const Bounds& bounds, const std::vector<std::string>& choices) {
  const auto check = [&](auto* value) -> std::string {
    using T = std::remove_pointer_t<decltype(value)>;
    if constexpr (std::is_same_v<T, std::string>) {
      if (choices.empty() || std::ranges::find(choices, *value) != choices.end()) return "";
    } else if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
      const double number = static_cast<double>(*value);
      const bool low = bounds.above ? number > bounds.least : number >= bounds.least;
      const bool high = bounds.below ? number < bounds.most : number <= bounds.most;
      if (low && high && std::isfinite(number)) return "";
    } else {
      return "";
    }
    return fmt::format("is {}, expected {}", value_text(value), allowed_text(bounds, choices));
  };
  return std::visit(check, field);
}

std::string quote(std::string_view text) {
  std::string result = "\"";
  for (const char character : text) {
    const auto code = static_cast<unsigned char>(character);
    if (character == '"' || character == '\\') {
      result += '\\';
      result += character;
    } else if (code < 0x20 || code == 0x7f) {
      result += fmt::format("\\u{:04X}", code);
    } else {
      result += character;
    }
  }
  return result + '"';
}

namespace {

std::string list_text(const std::vector<std::string>& texts) {
  std::vector<std::string> items;
  for (const std::string& text : texts) items.push_back(quote(text));
  return fmt::format("[{}]", fmt::join(items, ", "));
}

std::string list_text(const std::vector<std::int64_t>& numbers) {
  return fmt::format("[{}]", fmt::join(numbers, ", "));
}

std::string list_text(const std::vector<SourceConfig>& sources) {
  std::vector<std::string> items;
  for (SourceConfig source : sources) {
    std::vector<std::string> pairs;
    for (const auto& key : source_keys()) {
      pairs.push_back(fmt::format("{} = {}", key.name, value_text(key.field(source))));
    }
    items.push_back(fmt::format("{{{}}}", fmt::join(pairs, ", ")));
  }
  return fmt::format("[{}]", fmt::join(items, ", "));
}

}  // namespace

std::string value_text(const Field& field) {
  const auto text = [](const auto* value) -> std::string {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(value)>>;
    if constexpr (std::is_same_v<T, std::string>) {
      return quote(*value);
    } else if constexpr (std::is_same_v<T, double>) {
      const std::string shortest = fmt::format("{}", *value);
      return shortest.find_first_of(".en") == std::string::npos ? shortest + ".0" : shortest;
    } else if constexpr (std::is_arithmetic_v<T>) {
      return fmt::format("{}", *value);
    } else {
      return list_text(*value);
    }
  };
  return std::visit(text, field);
}

}  // namespace dropcycle::schema
