#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "model_proto.hpp"
#include "unigram.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Piece = ModelProto::Piece;
using PieceType = ModelProto::PieceType;

constexpr std::string_view kSpaceSign = "\xe2\x96\x81";

[[noreturn]] void refuse(const Tokenizer& tokenizer, std::string_view what) {
  fail(Status::input, "{}: {}, which has no equal tokenizer.json: export with another tokenizer",
       tokenizer.path().string(), what);
}

// How many characters a piece has.
std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

void check(const Tokenizer& tokenizer, const ModelProto& model) {
  if (model.model_type != 1 && model.model_type != 2) refuse(tokenizer, "it is neither unigram nor BPE");
  if (!model.byte_fallback) refuse(tokenizer, "it has no byte fallback");
  if (model.changes_characters) refuse(tokenizer, "it has a table of normalisation");
  if (model.remove_extra_whitespaces) refuse(tokenizer, "it removes extra white space");
  if (!model.escape_whitespaces || model.whitespace_as_suffix) {
    refuse(tokenizer, "it doesn't write spaces as U+2581 before words");
  }
  std::unordered_map<std::string_view, bool> singles;
  for (const Piece& piece : model.pieces) {
    if (piece.type == PieceType::normal && characters(piece.text) == 1) singles[piece.text] = true;
  }
  for (const Piece& piece : model.pieces) {
    if (piece.type == PieceType::user_defined || piece.type == PieceType::unused) {
      refuse(tokenizer, fmt::format("its piece '{}' is user-defined or unused", piece.text));
    }
    if (piece.type != PieceType::normal) continue;
    for (std::string_view rest = piece.text; !rest.empty();) {
      const CodePoint point = first_code_point(rest);
      if (point.size == 0 || !singles.contains(rest.substr(0, point.size))) {
        refuse(tokenizer, fmt::format("its piece '{}' has a character that is no piece", piece.text));
      }
      rest.remove_prefix(point.size);
    }
  }
}

// Every way to make a piece of two others, the best piece first, of one piece that with the longest left part. For
// SentencePiece these are equal and the leftmost neighbours are joined: in a run of equal characters those on the left
// are longer.
json merges_of(const ModelProto& model) {
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.pieces[id].type == PieceType::normal) ids.emplace(model.pieces[id].text, id);
  }
  struct Merge {
    float score;
    std::size_t cut, left, right;
  };
  std::vector<Merge> merges;
  for (const Piece& piece : model.pieces) {
    if (piece.type != PieceType::normal) continue;
    for (std::size_t cut = 1; cut < piece.text.size(); ++cut) {
      const auto left = ids.find(piece.text.substr(0, cut)), right = ids.find(piece.text.substr(cut));
      if (left != ids.end() && right != ids.end()) {
        merges.push_back({piece.score, cut, left->second, right->second});
      }
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return a.score != b.score ? a.score > b.score : a.cut > b.cut;
  });
  json list = json::array();
  for (const Merge& merge : merges) {
    list.push_back({std::string(model.pieces[merge.left].text), std::string(model.pieces[merge.right].text)});
  }
  return list;
}

json bpe_model(const ModelProto& model, const std::string& unknown) {
  json vocab = json::object();
  for (const Piece& piece : model.pieces) vocab[std::string(piece.text)] = vocab.size();
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unknown},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", true},
          {"byte_fallback", true},
          {"ignore_merges", false},
          {"vocab", std::move(vocab)},
          {"merges", merges_of(model)}};
}

// SentencePiece looks for normal pieces only. The library looks for all, so the others get a score that every other way
// to write their texts beats.
json unigram_model(const ModelProto& model, std::int32_t unknown) {
  const double never = never_score(model);
  json vocab = json::array();
  for (const Piece& piece : model.pieces) {
    vocab.push_back(
        {std::string(piece.text), piece.type == PieceType::normal ? static_cast<double>(piece.score) : never});
  }
  return {{"type", "Unigram"}, {"unk_id", unknown}, {"vocab", std::move(vocab)}, {"byte_fallback", true}};
}

json decoder_of(const ModelProto& model) {
  json steps = json::array({{{"type", "Replace"}, {"pattern", {{"String", kSpaceSign}}}, {"content", " "}},
                            {{"type", "ByteFallback"}},
                            {{"type", "Fuse"}}});
  if (model.add_dummy_prefix) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", std::move(steps)}};
}

json normalizer_of(const ModelProto& model) {
  json steps = json::array();
  if (model.add_dummy_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kSpaceSign}});
  steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceSign}});
  return {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
}

json special_tokens(const Tokenizer& tokenizer) {
  json tokens = json::object();
  const auto add = [&](const char* name, std::int32_t id) {
    if (id >= 0) tokens[name] = tokenizer.piece(id);
  };
  add("bos_token", tokenizer.bos_id());
  add("eos_token", tokenizer.eos_id());
  add("unk_token", tokenizer.unk_id());
  add("pad_token", tokenizer.pad_id());
  return tokens;
}

void write_json(const fs::path& path, const json& value) { write_file(path, value.dump(2) + "\n"); }

void write_sentencepiece(const Tokenizer& tokenizer, const fs::path& folder) {
  const std::string bytes = read_file(tokenizer.path());
  const ModelProto model = parse_model_proto(bytes, tokenizer.path().string());
  check(tokenizer, model);
  copy_tokenizer(tokenizer, folder);
  json added = json::array();
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    if (piece.type != PieceType::control && piece.type != PieceType::unknown) continue;
    added.push_back({{"id", id},
                     {"content", std::string(piece.text)},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  write_json(folder / "tokenizer.json",
             {{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", std::move(added)},
              {"normalizer", normalizer_of(model)},
              {"pre_tokenizer", nullptr},
              {"post_processor", nullptr},
              {"decoder", decoder_of(model)},
              {"model", model.model_type == 1 ? unigram_model(model, tokenizer.unk_id())
                                              : bpe_model(model, tokenizer.piece(tokenizer.unk_id()))}});
  json config = special_tokens(tokenizer);
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["clean_up_tokenization_spaces"] = false;
  config["split_special_tokens"] = true;  // as SentencePiece: "<s>" in a text is text
  write_json(folder / "tokenizer_config.json", config);
  write_json(folder / "special_tokens_map.json", special_tokens(tokenizer));
}

// Names the special tokens that came from a config.json, which doesn't go along.
void complete_config(const Tokenizer& tokenizer, const fs::path& path) {
  const bool there = fs::is_regular_file(path);
  json config = there ? json::parse(read_file(path), nullptr, false) : json::object();
  if (!config.is_object()) fail(Status::input, "{}: isn't a JSON object: give a whole file", path.string());
  bool changed = false;
  const auto set = [&](const std::string& key, const json& value) {
    if (config.contains(key) && !config[key].is_null()) return;
    config[key] = value;
    changed = true;
  };
  const json tokens = special_tokens(tokenizer);
  for (const auto& [name, token] : tokens.items()) set(name, token);
  if (!there) set("tokenizer_class", "PreTrainedTokenizerFast");
  if (changed || !there) write_json(path, config);
}

}  // namespace

void copy_tokenizer(const Tokenizer& tokenizer, const fs::path& folder) {
  fs::create_directories(folder);
  const fs::path& source = tokenizer.path();
  write_file(folder / (tokenizer.is_sentencepiece() ? "tokenizer.model" : "tokenizer.json"), read_file(source));
  if (tokenizer.is_sentencepiece()) return;
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
                           "merges.txt", "chat_template.jinja", "tokenizer.model"}) {
    const fs::path companion = source.parent_path() / name;
    if (fs::is_regular_file(companion)) write_file(folder / name, read_file(companion));
  }
  complete_config(tokenizer, folder / "tokenizer_config.json");
}

void write_huggingface(const Tokenizer& tokenizer, const fs::path& folder) {
  if (tokenizer.is_sentencepiece()) {
    write_sentencepiece(tokenizer, folder);
  } else {
    copy_tokenizer(tokenizer, folder);
  }
}

}  // namespace dropcycle
