// dropcycle preprocess: text, or Megatron-LM's token files, to token shards.
#include "dropcycle/data/preprocess.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>

#include "dropcycle/core/error.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

void print_summary(const PreprocessOptions& options, const PreprocessReport& report) {
  const auto rate = [&](std::uint64_t count) { return static_cast<double>(count) / 1e6 / report.seconds; };
  fmt::print("shards      {}  ({} to {})\n", report.shards.size(), report.shards.front().string(),
             report.shards.back().filename().string());
  fmt::print("documents   {}\n", report.documents);
  const double tokens = static_cast<double>(report.tokens) / 1e6;
  if (report.text_bytes == 0) {  // of Megatron's files
    fmt::print("tokens      {:.3f} million  ({:.2f} Mtoken/s)\ntime        {:.1f} s\n", tokens, rate(report.tokens),
               report.seconds);
    return;
  }
  fmt::print("text        {:.1f} MB  ({:.1f} MB/s)\n", static_cast<double>(report.text_bytes) / 1e6,
             rate(report.text_bytes));
  fmt::print("tokens      {:.3f} million  ({:.2f} Mtoken/s, {:.2f} bytes each)\n", tokens, rate(report.tokens),
             static_cast<double>(report.text_bytes) / 1e6 / tokens);
  fmt::print("time        {:.1f} s\n", report.seconds);
  fmt::print("bad lines   {}", report.bad());
  if (report.bad() > 0) {
    fmt::print(
        "  (broken JSON {}, no text {}, not a string {}, invalid UTF-8 {}, too long {}: see {}.quarantine.jsonl)",
        report.broken_json, report.no_text, report.not_a_string, report.invalid_utf8, report.too_long, options.output);
  }
  fmt::print("\n");
}

}  // namespace

void add_preprocess(CLI::App& app) {
  auto options = std::make_shared<PreprocessOptions>();
  auto megatron = std::make_shared<MegatronOptions>();
  CLI::App* verb =
      app.add_subcommand("preprocess", "Turn JSONL or text files, or Megatron-LM's files, into token shards");
  auto* const prefix =
      verb->add_option("--from-megatron", megatron->prefix, "Convert PREFIX.idx and PREFIX.bin instead")
          ->type_name("PREFIX");
  const auto of_text = [prefix](CLI::Option* option) { return option->excludes(prefix); };
  of_text(verb->add_option("INPUT", options->inputs, "Files or globs: .jsonl, .json (and .gz, .zst), or text"));
  verb->add_option("--tokenizer", options->tokenizer,
                   "A SentencePiece .model, a tokenizer.json, or a folder with either");
  verb->add_option("--vocab-size", megatron->vocabulary,
                   "With --from-megatron instead of --tokenizer: ids are below it")
      ->needs(prefix);
  verb->add_option("--output", options->output, "Prefix of the shards: PREFIX-00000.h5 and on")
      ->required()
      ->type_name("PREFIX");
  verb->add_option("--source", options->source, "Name kept in the shards; default: the prefix's last part");
  of_text(verb->add_option("--text-key", options->text_key, "Key of the text in JSONL")->capture_default_str());
  of_text(verb->add_option("--split", options->split, "What a document is in text files: files or lines")
              ->transform(CLI::CheckedTransformer(
                  std::map<std::string, TextSplit>{{"files", TextSplit::files}, {"lines", TextSplit::lines}}))
              ->type_name("files|lines")
              ->default_str("files"));
  of_text(verb->add_flag("--append-eos,!--no-append-eos", options->append_eos,
                         "End each document with the end id (default)"));
  of_text(verb->add_flag("--add-bos", options->add_bos, "Begin each document with the begin id"));
  of_text(
      verb->add_option("--workers", options->workers, "Threads that tokenize; 0: every core")->capture_default_str());
  of_text(verb->add_option("--max-line-bytes", options->max_line_bytes, "Longer lines are quarantined")
              ->capture_default_str());
  verb->add_option("--max-shard-bytes", options->max_shard_bytes, "A shard ends at this size")->capture_default_str();
  of_text(verb->add_flag("--strict", options->strict, "Fail if any line is bad"));
  verb->add_flag("--overwrite", options->overwrite, "Replace shards that have this prefix already");
  verb->footer(
      "\nBad lines (broken JSON, no text, invalid UTF-8, too long) are listed with file, line and byte in\n"
      "PREFIX.quarantine.jsonl. The shards don't depend on --workers. Megatron's documents keep their ids as they "
      "are:\n"
      "no end id is added.\n"
      "\nExamples:\n"
      "  dropcycle preprocess --tokenizer tok.model --output shards/ja text/ja.train.jsonl.zst\n"
      "  dropcycle preprocess --tokenizer Llama-3.1-8B/ --output shards/en text/en.train.jsonl\n"
      "  dropcycle preprocess --from-megatron data/pile_text_document --tokenizer tok.model --output shards/pile");
  verb->callback([options, megatron] {
    if (!megatron->prefix.empty()) {
      megatron->tokenizer = options->tokenizer;
      megatron->output = options->output;
      megatron->source = options->source;
      megatron->overwrite = options->overwrite;
      megatron->max_shard_bytes = options->max_shard_bytes;
      print_summary(*options, convert_megatron(*megatron));
      return;
    }
    if (options->inputs.empty())
      fail(Status::usage, "no input: name JSONL or text files, or say --from-megatron PREFIX");
    if (options->tokenizer.empty()) fail(Status::usage, "--tokenizer is missing: give the model's tokenizer");
    print_summary(*options, preprocess(*options));
  });
}

}  // namespace dropcycle
