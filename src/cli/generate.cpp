// dropcycle generate: lets a checkpoint speak.
#include "dropcycle/eval/generate.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "dropcycle/data/tokenizer.hpp"
#include "dropcycle/eval/load_model.hpp"
#include "verbs.hpp"
#include "with_runtime.hpp"

namespace dropcycle {
namespace {

struct SpeakOptions {
  std::string checkpoint, tokenizer, prompt;
  GenerateOptions generate;
  std::vector<std::string> overrides;
};

Status speak(SpeakOptions options, const Runtime& runtime) {
  Config config = config_of(options.checkpoint, options.overrides);
  resolve(config);
  Checkpoint checkpoint = Checkpoint::open(find_checkpoint(options.checkpoint));
  if (!checkpoint.tokenizer_folder().empty()) config.data.tokenizer = checkpoint.tokenizer_folder().string();
  if (!options.tokenizer.empty()) config.data.tokenizer = options.tokenizer;
  if (config.data.tokenizer.empty()) {
    fail(Status::usage, "{}: its tokenizer is unknown: add --tokenizer FILE", options.checkpoint);
  }
  const Tokenizer tokenizer(config.data.tokenizer);
  const std::string& expected = checkpoint.info().tokenizer_digest;
  if (!expected.empty() && expected != tokenizer.digest()) {
    fail(Status::input, "{}: digest {} isn't the one that the model was trained with ({}): give that tokenizer",
         config.data.tokenizer, tokenizer.digest(), expected);
  }
  Machine machine = make_machine(config, runtime);
  const auto model = load_model(checkpoint, machine);
  std::vector<std::int32_t> prompt = tokenizer.encode(options.prompt);
  if (prompt.empty() && tokenizer.eos_id() >= 0) prompt.push_back(tokenizer.eos_id());  // documents end with it
  options.generate.end_of_text = tokenizer.eos_id();
  const std::vector<std::int32_t> tokens = generate(*model, prompt, options.generate);
  if (runtime.rank() == 0) std::printf("%s%s\n", options.prompt.c_str(), tokenizer.decode(tokens).c_str());
  return Status::ok;
}

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<SpeakOptions>();
  CLI::App* verb = app.add_subcommand("generate", "Go on with a prompt, greedily or sampled");
  verb->add_option("CHECKPOINT", options->checkpoint,
                   "A checkpoint, a run folder (its newest one) or a Hugging Face folder")
      ->required();
  verb->add_option("--prompt", options->prompt, "Text to go on with");
  verb->add_option("--tokenizer", options->tokenizer, "Tokenizer: file or folder (default: the run's)");
  verb->add_option("--tokens", options->generate.tokens, "At most so many new tokens")->capture_default_str();
  verb->add_option("--temperature", options->generate.temperature, "0: greedy")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--top-k", options->generate.top_k, "Draw from the k likeliest tokens; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--top-p", options->generate.top_p, "Draw from the least set of tokens with this probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  verb->add_option("--seed", options->generate.seed, "Of the draws")->capture_default_str();
  add_set_option(*verb, options->overrides);
  verb->footer("\nExamples:\n  dropcycle generate run/quickstart/drop --prompt 'The file' --tokens 40 --temperature 0");
  verb->callback([options] { with_runtime([&](const Runtime& runtime) { return speak(*options, runtime); }); });
}

}  // namespace dropcycle
