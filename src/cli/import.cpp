// dropcycle import: a Hugging Face folder into a checkpoint.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>

#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/log.hpp"
#include "dropcycle/core/progress.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "dropcycle/model/cost.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

// Takes the tokenizer along: with its special tokens where it is one that we read, else file by file.
void take_tokenizer(const Checkpoint& source, const std::filesystem::path& folder) {
  if (source.tokenizer_folder().empty()) return;
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer.emplace(source.tokenizer_folder());
  } catch (const Error& error) {
    log_warning("{}; it is kept for an export, but no text can be made into tokens with it", error.what());
    return source.copy_tokenizer(folder);
  }
  copy_tokenizer(*tokenizer, folder);
}

void import_folder(const std::string& folder, const std::string& output) {
  Checkpoint source = Checkpoint::open(folder);
  Progress progress;
  import_model(
      source, output, [&](const std::filesystem::path& target) { take_tokenizer(source, target); },
      [&](std::uint64_t done, std::uint64_t all) { progress.show_bytes("importing", done, all); });
  const double seconds = progress.seconds(), gigabytes = static_cast<double>(source.data_bytes()) * 1e-9;
  progress.clear();
  const ParameterCount count = count_parameters(parse_model(source.info().model));
  std::printf("%s: %.1f M parameters, %.3f GB in %.1f s, %.2f GB/s; weights' digest %s; %s\n", output.c_str(),
              static_cast<double>(count.total) * 1e-6, gigabytes, seconds, gigabytes / seconds,
              source.digest("weight").c_str(),
              source.tokenizer_folder().empty() ? "no tokenizer" : "with its tokenizer");
}

}  // namespace

void add_import(CLI::App& app) {
  struct Options {
    std::string folder, output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("import", "Turn a Hugging Face Llama, Mistral or Mixtral into a checkpoint");
  verb->add_option("HF_DIR", options->folder,
                   "Folder with config.json and safetensors files: LlamaForCausalLM, MistralForCausalLM or "
                   "MixtralForCausalLM in bf16, fp16 or fp32")
      ->required();
  verb->add_option("--output", options->output, "Folder of the new checkpoint; must not hold anything")->required();
  verb->footer(
      "\nWeights keep their type, bit for bit. Verbs that read a checkpoint also take the folder as it is.\n"
      "\nExamples:\n"
      "  dropcycle import SmolLM2-135M --output models/smol\n"
      "  dropcycle verify models/smol --parent SmolLM2-135M");
  verb->callback([options] { import_folder(options->folder, options->output); });
}

}  // namespace dropcycle
