// dropcycle export: a checkpoint into a folder that Hugging Face's transformers loads.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/log.hpp"
#include "dropcycle/core/progress.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "dropcycle/eval/load_model.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

struct ExportVerbOptions {
  std::string checkpoint, output, dtype, tokenizer;
  std::uint64_t max_shard_bytes = 5'000'000'000;
};

// Writes the tokenizer that goes with the model: the one given, the checkpoint's own, or the run's.
void write_tokenizer(const ExportVerbOptions& options, const Checkpoint& checkpoint, const fs::path& folder) {
  const fs::path own = checkpoint.tokenizer_folder();
  if (options.tokenizer.empty() && fs::exists(own / "tokenizer.json")) return checkpoint.copy_tokenizer(folder);
  std::string path = options.tokenizer.empty() ? own.string() : options.tokenizer;
  if (path.empty()) path = config_of(options.checkpoint, {}).data.tokenizer;
  if (path.empty()) {
    log_warning("{}: its tokenizer is unknown, so none is exported: --tokenizer names it", options.checkpoint);
    return;
  }
  write_huggingface(Tokenizer(path), folder);
}

void export_folder(const ExportVerbOptions& options) {
  Checkpoint checkpoint = Checkpoint::open(find_checkpoint(options.checkpoint));
  ExportOptions chosen{.max_shard_bytes = options.max_shard_bytes};
  if (!options.dtype.empty()) chosen.dtype = parse_dtype(options.dtype);
  chosen.write_tokenizer = [&](const fs::path& folder) { write_tokenizer(options, checkpoint, folder); };
  Progress progress;
  std::uint64_t bytes = 0;
  export_model(checkpoint, options.output, chosen, [&](std::uint64_t done, std::uint64_t all) {
    bytes = all;
    progress.show_bytes("exporting", done, all);
  });
  const double seconds = progress.seconds(), gigabytes = static_cast<double>(bytes) * 1e-9;
  progress.clear();
  std::printf("%s: %.3f GB in %.1f s, %.2f GB/s\n", options.output.c_str(), gigabytes, seconds, gigabytes / seconds);
}

}  // namespace

void add_export(CLI::App& app) {
  auto options = std::make_shared<ExportVerbOptions>();
  CLI::App* verb = app.add_subcommand("export", "Turn a checkpoint into a Hugging Face folder");
  verb->add_option("CHECKPOINT", options->checkpoint, "A checkpoint, or a run folder (its newest one)")->required();
  verb->add_option("--output", options->output, "Folder that AutoModelForCausalLM loads; must not hold anything")
      ->required();
  verb->add_option("--max-shard-size", options->max_shard_bytes, "Weights are cut into files of at most this size")
      ->transform(CLI::AsSizeValue(true))
      ->default_str("5GB");
  verb->add_option("--dtype", options->dtype, "bf16, f16 or f32 (default: each tensor as it is stored)")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}));
  verb->add_option("--tokenizer", options->tokenizer, "Its tokenizer (default: the checkpoint's own, or the run's)");
  verb->footer(
      "\nDense models become LlamaForCausalLM (or what they were imported from), mixtures of experts\n"
      "MixtralForCausalLM. A training run's checkpoint holds f32 master weights: --dtype bf16 halves the files.\n"
      "\nExamples:\n"
      "  dropcycle export run/quickstart/drop --output hf/drop --dtype bf16\n"
      "  python -c \"from transformers import *; AutoModelForCausalLM.from_pretrained('hf/drop')\"");
  verb->callback([options] { export_folder(*options); });
}

}  // namespace dropcycle
