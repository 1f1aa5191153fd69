// dropcycle tokenizer: train, encode, decode, info.
#include "dropcycle/data/tokenizer.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "dropcycle/core/error.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

std::string standard_input() { return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()}; }

std::vector<std::int32_t> parse_ids(const std::string& text) {
  std::vector<std::int32_t> ids;
  const char* const end = text.data() + text.size();
  for (const char* at = text.data(); at != end;) {
    if (*at == ' ' || *at == '\n' || *at == '\t' || *at == ',') {
      ++at;
      continue;
    }
    std::int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc{}) {
      fail(Status::usage, "'{}' isn't a token id: expected numbers with spaces between",
           std::string(at, end).substr(0, 20));
    }
    ids.push_back(id);
    at = next;
  }
  return ids;
}

void add_training(CLI::App& tokenizer) {
  struct Options : TokenizerOptions {
    std::vector<std::string> inputs;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = tokenizer.add_subcommand("train", "Train a SentencePiece tokenizer on JSONL or text files");
  verb->add_option("INPUT", options->inputs, "Files or globs: .jsonl, .json (and .gz, .zst), or text")->required();
  verb->add_option("--output", options->output, "The model file to write")->required();
  verb->add_option("--type", options->type, "unigram or bpe")->capture_default_str();
  verb->add_option("--vocab-size", options->vocab_size, "Pieces in the vocabulary")->capture_default_str();
  verb->add_option("--sample-lines", options->sample_lines, "Lines to train on, at random; 0: all")
      ->capture_default_str();
  verb->add_option("--max-bytes", options->max_bytes, "Text to take, as much of each input; 0: all")
      ->capture_default_str();
  verb->add_option("--max-line-bytes", options->max_line_bytes, "Longer lines are cut")->capture_default_str();
  verb->add_option("--character-coverage", options->character_coverage, "Share of characters that get pieces")
      ->capture_default_str();
  verb->add_option("--text-key", options->text_key, "Key of the text in JSONL")->capture_default_str();
  verb->add_option("--threads", options->threads, "Threads")->capture_default_str();
  verb->callback([options] { fmt::print("{}\n", train_tokenizer(*options, options->inputs).describe()); });
}

void add_encode(CLI::App& tokenizer) {
  struct Options {
    std::string model, text;
    bool pieces = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = tokenizer.add_subcommand("encode", "Print the token ids of a text");
  verb->add_option("MODEL", options->model, "A SentencePiece .model, a tokenizer.json, or a folder with either")
      ->required();
  CLI::Option* text = verb->add_option("TEXT", options->text, "The text; without it, standard input");
  verb->add_flag("--pieces", options->pieces, "Print pieces, one a line with its id");
  verb->callback([options, text] {
    const Tokenizer model(options->model);
    const auto ids = model.encode(text->count() > 0 ? options->text : standard_input());
    for (const std::int32_t id : ids) {
      if (options->pieces) fmt::print("{:>7}  {}\n", id, model.piece(id));
    }
    if (!options->pieces) fmt::print("{}\n", fmt::join(ids, " "));
  });
}

void add_decode(CLI::App& tokenizer) {
  struct Options {
    std::string model;
    std::vector<std::string> ids;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = tokenizer.add_subcommand("decode", "Print the text of token ids");
  verb->add_option("MODEL", options->model, "A SentencePiece .model, a tokenizer.json, or a folder with either")
      ->required();
  verb->add_option("ID", options->ids, "Token ids; without them, standard input");
  verb->callback([options] {
    const Tokenizer model(options->model);
    const std::string text = options->ids.empty() ? standard_input() : fmt::format("{}", fmt::join(options->ids, " "));
    fmt::print("{}\n", model.decode(parse_ids(text)));
  });
}

void add_info(CLI::App& tokenizer) {
  auto model = std::make_shared<std::string>();
  CLI::App* verb = tokenizer.add_subcommand("info", "Show a tokenizer's size, ids and digest");
  verb->add_option("MODEL", *model, "A SentencePiece .model, a tokenizer.json, or a folder with either")->required();
  verb->callback([model] { fmt::print("{}\n", Tokenizer(*model).describe()); });
}

}  // namespace

void add_tokenizer(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("tokenizer", "Train a tokenizer, or turn text into token ids and back");
  verb->require_subcommand(1);
  add_training(*verb);
  add_encode(*verb);
  add_decode(*verb);
  add_info(*verb);
  verb->footer(
      "\nExamples:\n"
      "  dropcycle tokenizer train --vocab-size 16384 --output tok.model text/*.train.jsonl\n"
      "  dropcycle tokenizer encode tok.model \"Hello world\" --pieces");
}

}  // namespace dropcycle
