// dropcycle upcycle: a dense checkpoint into an MoE checkpoint with a receipt.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <span>

#include "conversion.hpp"
#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/progress.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "dropcycle/eval/load_model.hpp"
#include "dropcycle/train/validation.hpp"
#include "verbs.hpp"
#include "with_runtime.hpp"

namespace dropcycle {
namespace {

struct UpcycleVerbOptions {
  std::string dense, output, dtype = "f32";
  InitConfig init{.method = "drop"};
  std::int64_t experts = 8, experts_per_token = 2;
  std::vector<std::string> validation;
  std::int64_t tokens = 65536;
};

Receipt plan(const UpcycleVerbOptions& options, const Checkpoint& dense) {
  Receipt receipt;
  receipt.dense = parse_model(dense.info().model);
  receipt.moe = receipt.dense;
  receipt.moe.experts = options.experts;
  receipt.moe.experts_per_token = options.experts_per_token;
  resolve(receipt.moe);
  receipt.init = options.init;
  receipt.init.from = dense.folder().string();
  receipt.dtype = parse_dtype(options.dtype);
  receipt.parent_step = dense.info().step;
  check_fits(receipt.dense, receipt.moe);
  dropped_neurons(receipt.init.ratio, receipt.moe.intermediate_size);
  return receipt;
}

// The parent's tokenizer goes along, or that of the run that the parent belongs to.
void keep_tokenizer(const Checkpoint& dense, const std::filesystem::path& folder) {
  if (!dense.tokenizer_folder().empty()) return dense.copy_tokenizer(folder);
  const std::string path = config_of(dense.folder(), {}).data.tokenizer;
  if (std::filesystem::exists(path)) copy_tokenizer(Tokenizer(path), folder);
}

// Writes the checkpoint; the number of bytes.
std::uint64_t write_checkpoint(Receipt& receipt, Checkpoint& dense, const std::filesystem::path& output) {
  const std::vector<ParameterSpec> specs = all_parameters(receipt.moe);
  std::vector<SliceSpec> slices;
  std::uint64_t all = 0, done = 0;
  for (const ParameterSpec& spec : specs) {
    Shape origin = spec.shape;
    for (int dim = 0; dim < origin.dims(); ++dim) origin.set(dim, 0);
    slices.push_back({"weight", spec.name, stored_dtype(spec, receipt.dtype), spec.shape, origin, spec.shape});
    all += static_cast<std::uint64_t>(slices.back().size_bytes());
  }
  Progress progress;
  CheckpointStream stream(output, std::move(slices));
  convert_model(receipt, &dense, specs, [&](std::size_t place, const Tensor& tensor) {
    stream.write(place, tensor.data);
    done += static_cast<std::uint64_t>(tensor.bytes());
    progress.show_bytes("upcycling", done, all);
  });
  // After the conversion, which has read what the digest of a Hugging Face folder needs.
  if (receipt.init.method != "scratch") receipt.parent_digest = dense.digest("weight");
  stream.add_tokenizer([&](const std::filesystem::path& folder) { keep_tokenizer(dense, folder); });
  CheckpointInfo info;
  info.model = to_toml(receipt.moe);
  info.seed = receipt.init.seed;
  info.tokenizer_digest = dense.info().tokenizer_digest;
  info.origin = origin_json(receipt);
  info.huggingface = dense.info().huggingface;
  stream.commit(info);
  return all;
}

// Entropy of each layer's shares of the choices.
std::vector<double> load_entropy(const RoutingStatistics& routing) {
  std::vector<double> result;
  for (std::int64_t layer = 0; layer < routing.layers; ++layer) {
    const auto counts =
        std::span(routing.counts)
            .subspan(static_cast<std::size_t>(layer * routing.experts), static_cast<std::size_t>(routing.experts));
    const double all = std::accumulate(counts.begin(), counts.end(), 0.0);
    double entropy = 0;
    for (const double count : counts) entropy -= count > 0 ? count / all * std::log(count / all) : 0;
    result.push_back(entropy);
  }
  return result;
}

// Held-out text, opened before the conversion so that what can't be measured is known at once.
class LossMeter {
 public:
  LossMeter(const UpcycleVerbOptions& options, const Checkpoint& dense, const Runtime& runtime)
      : config_(evaluation_config(options, dense)),
        machine_(make_machine(config_, runtime)),
        validation_(config_, machine_.groups, dense.info().tokenizer_digest) {}

  ReceiptLosses measure(Checkpoint& dense, Checkpoint& moe) {
    ReceiptLosses losses;
    RoutingStatistics routing;
    losses.dense = mean_loss(*load_model(dense, machine_), nullptr, losses.tokens);
    const auto model = load_model(moe, machine_);
    routing = RoutingStatistics(model->config().layers, model->config().experts);
    losses.moe = mean_loss(*model, &routing, losses.tokens);
    losses.load_entropy = load_entropy(routing);
    return losses;
  }

 private:
  static Config evaluation_config(const UpcycleVerbOptions& options, const Checkpoint& dense) {
    Config config = config_of(dense.folder(), {});
    config.init = {};
    config.parallel = {};
    config.train.micro_batch = 1;
    config.data.valid = {{.name = "validation", .shards = options.validation}};
    config.train.eval_batches = (options.tokens + config.data.sequence_length - 1) / config.data.sequence_length;
    resolve(config);
    return config;
  }
  double mean_loss(Model& model, RoutingStatistics* routing, std::int64_t& tokens) {
    const EvalMetrics result = validation_.run(model, 0, 0, routing);
    tokens = result.tokens;
    return result.loss;
  }

  Config config_;
  Machine machine_;
  Validation validation_;
};

Status upcycle(const UpcycleVerbOptions& options, const Runtime& runtime) {
  if (runtime.size() > 1) fail(Status::usage, "upcycle runs as one process, not as {} ranks", runtime.size());
  const Progress::Clock::time_point start = Progress::Clock::now();
  Checkpoint dense = Checkpoint::open(find_checkpoint(options.dense));
  Receipt receipt = plan(options, dense);
  std::optional<LossMeter> meter;
  if (!options.validation.empty()) meter.emplace(options, dense, runtime);
  const std::uint64_t bytes = write_checkpoint(receipt, dense, options.output);
  const double seconds = std::chrono::duration<double>(Progress::Clock::now() - start).count();
  Checkpoint moe = Checkpoint::open(options.output);
  receipt.checkpoint_digest = moe.digest("weight");
  if (meter) receipt.losses = meter->measure(dense, moe);
  write_file(std::filesystem::path(options.output) / "receipt.json", to_text(receipt));
  std::printf("%s%s: %.3f GB in %.1f s, %.2f GB/s; receipt.json says how\n", describe(receipt).c_str(),
              options.output.c_str(), static_cast<double>(bytes) * 1e-9, seconds,
              static_cast<double>(bytes) * 1e-9 / seconds);
  return Status::ok;
}

}  // namespace

void add_upcycle(CLI::App& app) {
  auto options = std::make_shared<UpcycleVerbOptions>();
  CLI::App* verb = app.add_subcommand("upcycle", "Turn a dense checkpoint into a mixture of experts");
  InitConfig& init = options->init;
  verb->add_option("DENSE", options->dense,
                   "A dense checkpoint, a run folder (its newest one) or a Hugging Face folder")
      ->required();
  verb->add_option("--output", options->output, "Folder of the new checkpoint; must not hold anything")->required();
  verb->add_option("--method", init.method, "drop (Drop-Upcycling), naive (copies), noise (copies + noise) or scratch")
      ->check(CLI::IsMember({"drop", "naive", "noise", "scratch"}))
      ->capture_default_str();
  verb->add_option("--ratio", init.ratio, "r: share of each expert's neurons that are redrawn, 0 to 1")
      ->capture_default_str();
  verb->add_option("--experts", options->experts, "E")->capture_default_str();
  verb->add_option("--experts-per-token", options->experts_per_token, "K")->capture_default_str();
  verb->add_option("--seed", init.seed, "Of index sets, redrawn weights and router")->capture_default_str();
  verb->add_option("--index-sets", init.index_sets,
                   "shared: one set for gate, up and down (the paper); per_matrix: one each (the authors' script)")
      ->check(CLI::IsMember({"shared", "per_matrix"}))
      ->capture_default_str();
  verb->add_option("--noise-std", init.noise_std, "Standard deviation of the noise method")->capture_default_str();
  verb->add_option("--router", init.router, "Distribution of the router's weights (the paper's Table 8)")
      ->check(CLI::IsMember({"normal_002", "normal_02887", "uniform_002", "uniform_05", "uniform_01"}))
      ->capture_default_str();
  verb->add_option("--dtype", options->dtype, "Type of the new weights (norms and router stay f32)")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  verb->add_option("--validation", options->validation, "Held-out shards: their loss goes into the receipt; repeatable")
      ->type_name("SHARDS")
      ->allow_extra_args(false);
  verb->add_option("--tokens", options->tokens, "How many held-out tokens, about")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->footer(
      "\nExamples:\n"
      "  dropcycle upcycle runs/dense --output models/drop --ratio 0.5 --experts 8 --validation 'shards/*/valid*.h5'\n"
      "  dropcycle verify models/drop --parent runs/dense\n"
      "  dropcycle upcycle SmolLM2-135M --output models/smol8 --dtype bf16"
      "    # a Hugging Face folder");
  verb->callback([options] { with_runtime([&](const Runtime& runtime) { return upcycle(*options, runtime); }); });
}

}  // namespace dropcycle
