// dropcycle generate: lets a checkpoint speak.
#include "dropcycle/eval/generate.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dropcycle/checkpoint/huggingface.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "dropcycle/eval/load_model.hpp"
#include "verbs.hpp"
#include "with_runtime.hpp"

namespace dropcycle {
namespace {

struct SpeakOptions {
  std::string checkpoint, tokenizer, prompt_file;
  std::vector<std::string> prompts, overrides;
  bool begin = false, json = false;
  GenerateOptions generate;
};

// The tokenizer that the checkpoint was trained with; `name` is what the user called the checkpoint.
Tokenizer find_tokenizer(const Checkpoint& checkpoint, const std::string& name, const std::string& given,
                         const Config& config) {
  std::string path =
      checkpoint.tokenizer_folder().empty() ? config.data.tokenizer : checkpoint.tokenizer_folder().string();
  if (!given.empty()) path = given;
  if (path.empty()) fail(Status::usage, "{}: its tokenizer is unknown: add --tokenizer FILE", name);
  Tokenizer tokenizer(path);
  const std::string& expected = checkpoint.info().tokenizer_digest;
  if (!expected.empty() && expected != tokenizer.digest()) {
    fail(Status::input, "{}: digest {} isn't the one that the model was trained with ({}): give that tokenizer", path,
         tokenizer.digest(), expected);
  }
  return tokenizer;
}

// Those of --prompt, then the lines of the file; an empty one if there is no other.
std::vector<std::string> all_prompts(const SpeakOptions& options) {
  std::vector<std::string> prompts = options.prompts;
  if (!options.prompt_file.empty()) {
    std::istringstream lines(read_file(options.prompt_file));
    for (std::string line; std::getline(lines, line);) prompts.push_back(line);
    if (prompts.empty()) fail(Status::input, "{}: is empty, expected one prompt a line", options.prompt_file);
  }
  if (prompts.empty()) prompts.emplace_back();
  return prompts;
}

std::vector<std::int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& prompt, bool begin) {
  std::vector<std::int32_t> ids = tokenizer.encode(prompt);
  if (begin) {
    if (tokenizer.bos_id() < 0) {
      fail(Status::usage, "--bos: {} has no begin token: leave the option out", tokenizer.path().string());
    }
    ids.insert(ids.begin(), tokenizer.bos_id());
  }
  if (ids.empty() && tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());  // documents end with it
  return ids;
}

void print(const SpeakOptions& options, const std::string& prompt, const std::vector<std::int32_t>& prompt_ids,
           const std::vector<std::int32_t>& ids, const std::string& text) {
  if (options.json) {
    const nlohmann::ordered_json line = {{"prompt", prompt}, {"prompt_ids", prompt_ids}, {"ids", ids}, {"text", text}};
    // Bytes that aren't UTF-8, such as half a character at the end, become U+FFFD.
    std::puts(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::printf("%s%s\n", prompt.c_str(), text.c_str());
  }
  std::fflush(stdout);
}

Status speak(SpeakOptions options, const Runtime& runtime) {
  Config config = config_of(options.checkpoint, options.overrides);
  resolve(config);
  Checkpoint checkpoint = Checkpoint::open(find_checkpoint(options.checkpoint));
  const Tokenizer tokenizer = find_tokenizer(checkpoint, options.checkpoint, options.tokenizer, config);
  const std::vector<std::string> prompts = all_prompts(options);
  Machine machine = make_machine(config, runtime);
  const auto model = load_model(checkpoint, machine);
  options.generate.ends = end_tokens(checkpoint.info().huggingface, options.checkpoint);
  if (options.generate.ends.empty()) options.generate.ends = {tokenizer.eos_id()};
  for (const std::string& prompt : prompts) {
    const std::vector<std::int32_t> prompt_ids = encode_prompt(tokenizer, prompt, options.begin);
    const std::vector<std::int32_t> ids = generate(*model, prompt_ids, options.generate);
    if (runtime.rank() == 0) print(options, prompt, prompt_ids, ids, tokenizer.decode(ids));
  }
  return Status::ok;
}

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<SpeakOptions>();
  CLI::App* verb = app.add_subcommand("generate", "Go on with prompts, greedily or sampled");
  verb->add_option("CHECKPOINT", options->checkpoint,
                   "A checkpoint, a run folder (its newest one) or a Hugging Face folder")
      ->required();
  verb->add_option("--prompt", options->prompts, "Text to go on with; repeatable (default: the start of a document)")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  verb->add_option("--prompts", options->prompt_file, "A file with one prompt a line")->type_name("FILE");
  verb->add_flag("--bos", options->begin,
                 "Put the tokenizer's begin token before each prompt (Llama's models expect it)");
  verb->add_flag("--json", options->json, "One JSON object a prompt and line: prompt, prompt_ids, ids, text");
  verb->add_option("--tokenizer", options->tokenizer, "Tokenizer: file or folder (default: the run's)");
  verb->add_option("--tokens", options->generate.tokens, "At most so many new tokens")->capture_default_str();
  verb->add_option("--temperature", options->generate.temperature, "0: greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  verb->add_option("--top-k", options->generate.top_k, "Draw from the k likeliest tokens; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  verb->add_option("--top-p", options->generate.top_p, "Draw from the least set of tokens with this probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  verb->add_option("--seed", options->generate.seed, "Of the draws")->capture_default_str();
  add_set_option(*verb, options->overrides);
  verb->footer(
      "\nExamples:\n"
      "  dropcycle generate run/quickstart/drop --prompt 'The file' --tokens 40 --temperature 0\n"
      "  dropcycle generate SmolLM2-135M --prompts questions.txt --json --set device.compute_dtype=f32 > "
      "answers.jsonl");
  verb->callback([options] { with_runtime([&](const Runtime& runtime) { return speak(*options, runtime); }); });
}

}  // namespace dropcycle
