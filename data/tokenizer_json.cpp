#include "tokenizer_json.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "byte_letters.hpp"
#include "dropcycle/core/file.hpp"
#include "json_reader.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kMaxIds = std::int64_t{1} << 24U;

// ---- The parts that are lists of typed steps

[[noreturn]] void refuse_type(const Json& node, std::string_view reads) {
  const std::string type(node.at("type").text().substr(0, 40));
  node.refuse(fmt::format("{} isn't supported: Dropcycle reads {}", type, reads));
}

// Calls step(node) for each member of a Sequence, or for the one that isn't a Sequence.
void each_step(const Json& node, std::string_view list, const std::function<void(const Json&)>& step) {
  if (node.at("type").text() != "Sequence") return step(node);
  node.only({"type", list});
  const Json steps = node.at(list);
  std::size_t index = 0;
  for (const auto child : steps.array()) each_step(steps.item(child, index++), list, step);
}

std::string text_that_isnt_empty(const Json& node) {
  if (node.text().empty()) node.refuse("expected a string that isn't empty");
  return std::string(node.text());
}

// {"String": "x"}
std::string plain_pattern(const Json& node) {
  node.only({"String"});
  return text_that_isnt_empty(node.at("String"));
}

NormalizerStep normalizer_step(const Json& node) {
  const auto type = node.at("type").text();
  if (type == "NFC") {
    node.only({"type"});
    return {NormalizerStep::Kind::nfc, "", ""};
  }
  if (type == "Prepend") {
    node.only({"type", "prepend"});
    return {NormalizerStep::Kind::prepend, "", text_that_isnt_empty(node.at("prepend"))};
  }
  if (type == "Replace") {
    node.only({"type", "pattern", "content"});
    return {NormalizerStep::Kind::replace, plain_pattern(node.at("pattern")), std::string(node.at("content").text())};
  }
  refuse_type(node, "NFC, Prepend, Replace and Sequence");
}

SplitStep::Prefix prefix_of(const Json& node) {
  const auto scheme = node.find("prepend_scheme");
  if (!scheme) return node.flag("add_prefix_space", true) ? SplitStep::Prefix::always : SplitStep::Prefix::never;
  const auto name = scheme->text();
  if (name == "always") return SplitStep::Prefix::always;
  if (name == "first") return SplitStep::Prefix::first;
  if (name != "never") scheme->refuse("expected always, first or never");
  return SplitStep::Prefix::never;
}

SplitStep metaspace_step(const Json& node) {
  node.only({"type", "replacement", "prepend_scheme", "add_prefix_space", "split", "str_rep"});
  SplitStep step{SplitStep::Kind::space_signs, "", node.where(), text_that_isnt_empty(node.at("replacement"))};
  step.prefix = prefix_of(node);
  step.cut = node.flag("split", true);
  return step;
}

SplitStep split_step(const Json& node) {
  const auto type = node.at("type").text();
  if (type == "ByteLevel") {
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    SplitStep step{SplitStep::Kind::bytes, "", node.where()};
    if (node.flag("add_prefix_space", true)) step.prefix = SplitStep::Prefix::always;
    step.cut = node.flag("use_regex", true);
    return step;
  }
  if (type == "Digits") {
    node.only({"type", "individual_digits"});
    const bool each = node.flag("individual_digits", false);
    return {each ? SplitStep::Kind::digits : SplitStep::Kind::digit_runs, "", node.where()};
  }
  if (type == "Metaspace") return metaspace_step(node);
  if (type == "Split") {
    node.only({"type", "pattern", "behavior", "invert"});
    const Json pattern = node.at("pattern"), behavior = node.at("behavior");
    pattern.only({"Regex"});
    if (behavior.text() != "Isolated") behavior.refuse("isn't supported: Dropcycle reads Isolated");
    if (node.flag("invert", false)) node.refuse("'invert' isn't supported: give a tokenizer without it");
    return {SplitStep::Kind::pattern, std::string(pattern.at("Regex").text()), pattern.at("Regex").where()};
  }
  refuse_type(node, "ByteLevel, Digits, Metaspace, Split and Sequence");
}

// Metaspace stands alone; ByteLevel last, and puts spaces before parts only where it is alone.
void check_splits(const Json& node, const std::vector<SplitStep>& steps) {
  using Kind = SplitStep::Kind;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].kind == Kind::space_signs && steps.size() > 1) {
      node.refuse("Metaspace in a Sequence with others isn't supported: give another tokenizer");
    }
    if (steps[i].kind != Kind::bytes) continue;
    if (i + 1 < steps.size()) node.refuse("ByteLevel isn't last in its Sequence, which isn't supported");
    if (i > 0 && steps[i].prefix != SplitStep::Prefix::never) {
      node.refuse("ByteLevel with add_prefix_space after others isn't supported: give another tokenizer");
    }
  }
}

DecoderStep decoder_step(const Json& node) {
  using Kind = DecoderStep::Kind;
  const auto type = node.at("type").text();
  if (type == "ByteLevel") {
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    return {Kind::bytes};
  }
  if (type == "ByteFallback" || type == "Fuse") {
    node.only({"type"});
    return {type == "Fuse" ? Kind::fuse : Kind::byte_pieces};
  }
  if (type == "Replace") {
    node.only({"type", "pattern", "content"});
    return {Kind::replace, plain_pattern(node.at("pattern")), std::string(node.at("content").text())};
  }
  if (type == "Strip") {
    node.only({"type", "content", "start", "stop"});
    const auto count = [&](const char* key) {
      const Json value = node.at(key);
      if (value.integer() < 0 || value.integer() > 1000) value.refuse("expected 0 to 1000");
      return static_cast<std::size_t>(value.integer());
    };
    return {Kind::strip, text_that_isnt_empty(node.at("content")), "", count("start"), count("stop")};
  }
  if (type == "Metaspace") {
    const SplitStep step = metaspace_step(node);
    return {Kind::space_signs, step.sign, "", step.prefix == SplitStep::Prefix::never ? 0U : 1U};
  }
  refuse_type(node, "ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip and Sequence");
}

// Only adds special tokens, which encoding without them doesn't see.
void check_post_processor(const Json& node) {
  each_step(node, "processors", [](const Json& step) {
    const auto type = step.at("type").text();
    if (type != "TemplateProcessing" && type != "ByteLevel") {
      refuse_type(step, "TemplateProcessing, ByteLevel and Sequence");
    }
  });
}

// ---- The model

std::int32_t checked_id(const Json& node) {
  const std::int64_t id = node.integer();
  if (id < 0 || id >= kMaxIds) node.refuse(fmt::format("id {} isn't between 0 and {}", id, kMaxIds - 1));
  return static_cast<std::int32_t>(id);
}

// Pieces by id. The views point into the JSON.
class PieceTable {
 public:
  void set(std::int32_t id, std::string_view piece, const Json& node) {
    const auto index = static_cast<std::size_t>(id);
    if (pieces_.size() <= index) pieces_.resize(index + 1);
    if (!pieces_[index].empty()) node.refuse(fmt::format("id {} stands for two pieces", id));
    if (piece.empty()) return;
    pieces_[index] = piece;
  }
  const std::vector<std::string_view>& pieces() const { return pieces_; }

 private:
  std::vector<std::string_view> pieces_;
};

std::size_t read_bpe_pieces(const Json& vocab, PieceTable& table) {
  std::size_t count = 0;
  for (const auto [key, value] : vocab.object()) {
    const Json entry = value.is_int64() ? vocab : vocab.member(value, key);
    const std::int64_t id = value.is_int64() ? std::int64_t{value} : entry.integer();
    if (id < 0 || id >= kMaxIds) checked_id(vocab.member(value, key));
    table.set(static_cast<std::int32_t>(id), key, entry);
    ++count;
  }
  return count;
}

// "left right" or ["left", "right"]
std::pair<std::string_view, std::string_view> halves(const Json& list, simdjson::dom::element merge,
                                                     std::size_t index) {
  std::string_view text;
  if (merge.get(text) == simdjson::SUCCESS) {
    const std::size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  } else if (simdjson::dom::array pair; merge.get(pair) == simdjson::SUCCESS && pair.size() == 2) {
    std::string_view left, right;
    if (pair.at(0).get(left) == simdjson::SUCCESS && pair.at(1).get(right) == simdjson::SUCCESS) return {left, right};
  }
  list.item(merge, index).refuse("expected two pieces with one space between, or a list of two");
}

void read_merges(const Json& list, const Vocabulary& pieces, std::vector<BpeRules::Merge>& merges) {
  std::string joined;
  std::size_t index = 0;
  for (const auto merge : list.array()) {
    const auto [left, right] = halves(list, merge, index);
    (joined = left) += right;
    const BpeRules::Merge found{pieces.find(left), pieces.find(right), pieces.find(joined)};
    if (found.left < 0 || found.right < 0 || found.result < 0) {
      list.item(merge, index).refuse(fmt::format("'{}' or a half of it isn't in the vocabulary", joined.substr(0, 80)));
    }
    merges.push_back(found);
    ++index;
  }
}

void refuse_affix(const Json& model, std::string_view key) {
  if (const auto affix = model.find(key); affix && !affix->text().empty()) {
    affix->refuse("isn't supported: Dropcycle reads BPE without it");
  }
}

bool has_every_byte(const Vocabulary& pieces, bool byte_level) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string piece = fmt::format("<0x{:02X}>", byte);
    if (byte_level) append_utf8(byte_letters()[byte], piece = "");
    if (pieces.find(piece) < 0) return false;
  }
  return true;
}

std::size_t read_bpe(const Json& model, TokenizerJson& parsed, PieceTable& table) {
  model.only({"type", "vocab", "merges", "unk_token", "byte_fallback", "fuse_unk", "ignore_merges", "dropout",
              "continuing_subword_prefix", "end_of_word_suffix"});
  if (const auto dropout = model.find("dropout"); dropout && dropout->real() != 0) {
    dropout->refuse("isn't supported: the same text would give other ids each time");
  }
  refuse_affix(model, "continuing_subword_prefix");
  refuse_affix(model, "end_of_word_suffix");
  const std::size_t count = read_bpe_pieces(model.at("vocab"), table);
  parsed.pieces = Vocabulary(table.pieces());
  BpeRules& rules = parsed.bpe;
  read_merges(model.at("merges"), parsed.pieces, rules.merges);
  rules.byte_fallback = model.flag("byte_fallback", false);
  rules.fuse_unknown = model.flag("fuse_unk", false);
  rules.ignore_merges = model.flag("ignore_merges", false);
  rules.byte_level = !parsed.splits.empty() && parsed.splits.back().kind == SplitStep::Kind::bytes;
  if (const auto unknown = model.find("unk_token")) {
    rules.unknown = parsed.pieces.find(unknown->text());
    const bool needed = !((rules.byte_level || rules.byte_fallback) && has_every_byte(parsed.pieces, rules.byte_level));
    if (rules.unknown < 0 && needed) unknown->refuse("isn't in the vocabulary");
  }
  parsed.unknown = rules.unknown;
  return count;
}

std::size_t read_unigram(const Json& model, TokenizerJson& parsed, PieceTable& table) {
  model.only({"type", "unk_id", "vocab", "byte_fallback", "fuse_unk", "alpha", "nbest_size"});
  for (const auto& step : parsed.splits) {
    if (step.kind == SplitStep::Kind::bytes) model.refuse("Unigram after ByteLevel isn't supported");
  }
  const Json vocab = model.at("vocab");
  for (const auto entry : vocab.array()) {
    const std::size_t index = parsed.scores.size();
    const Json pair = vocab.item(entry, index);
    if (pair.array().size() != 2) pair.refuse("expected a piece and its score");
    if (index >= static_cast<std::size_t>(kMaxIds)) vocab.refuse("has too many pieces");
    table.set(static_cast<std::int32_t>(index), pair.item(pair.array().at(0), 0).text(), pair);
    const double score = pair.item(pair.array().at(1), 1).real();
    if (!std::isfinite(score)) pair.refuse("the score isn't finite");
    parsed.scores.push_back(score);
  }
  parsed.pieces = Vocabulary(table.pieces());
  const Json unknown = model.at("unk_id");
  parsed.unknown = checked_id(unknown);
  if (parsed.unknown >= parsed.pieces.size()) unknown.refuse("isn't an id of the vocabulary");
  if (!model.flag("byte_fallback", false) || !has_every_byte(parsed.pieces, false)) {
    model.refuse("Unigram without byte_fallback and its 256 pieces isn't supported: give another tokenizer");
  }
  return parsed.scores.size();
}

std::size_t read_model(const Json& model, TokenizerJson& parsed, PieceTable& table) {
  const auto type = model.find("type");  // files of before 2020 don't name it
  if ((type && type->text() == "BPE") || (!type && model.find("merges"))) return read_bpe(model, parsed, table);
  if (type && type->text() == "Unigram") {
    parsed.unigram = true;
    return read_unigram(model, parsed, table);
  }
  if (!type) model.refuse("'type' is missing: give a whole tokenizer.json");
  refuse_type(model, "BPE and Unigram");
}

// ---- Added tokens

// The `tokenizers` library gives new tokens the ids after the model's, in order; a file that says otherwise would be
// read in two ways.
void read_added(const Json& list, std::size_t model_pieces, TokenizerJson& parsed, PieceTable& table) {
  std::size_t index = 0;
  auto next = static_cast<std::int64_t>(model_pieces);
  for (const auto entry : list.array()) {
    const Json node = list.item(entry, index++);
    node.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token;
    token.content = text_that_isnt_empty(node.at("content"));
    token.id = checked_id(node.at("id"));
    if (node.flag("single_word", false)) node.refuse("'single_word' isn't supported: give a tokenizer without it");
    token.left_strip = node.flag("lstrip", false);
    token.right_strip = node.flag("rstrip", false);
    token.special = node.flag("special", false);
    token.normalized = node.flag("normalized", !token.special);
    const auto same = [&](const AddedToken& other) { return other.content == token.content; };
    if (std::any_of(parsed.added.begin(), parsed.added.end(), same)) node.refuse("the token is there twice");
    const std::int32_t known = parsed.pieces.find(token.content);
    if (const std::int64_t expected = known >= 0 ? known : next; token.id != expected) {
      node.at("id").refuse(fmt::format("is {}, but the token's place among the others gives {}", token.id, expected));
    }
    if (known < 0) {
      table.set(token.id, node.at("content").text(), node);
      ++next;
    } else {
      next = std::max<std::int64_t>(next, known + 1);
    }
    parsed.added.push_back(std::move(token));
  }
}

// ---- Begin, end, unknown and padding ids: of the files beside it

std::optional<std::int32_t> id_of_token(const Json& config, std::string_view name, const Vocabulary& all) {
  const auto value = config.find(name);
  if (!value) return std::nullopt;
  const Json content = value->is_string() ? *value : value->at("content");
  const std::int32_t id = all.find(content.text());
  if (id < 0) content.refuse(fmt::format("'{}' isn't in the vocabulary", content.text().substr(0, 80)));
  return id;
}

std::optional<std::int32_t> id_of_number(const Json& config, std::string_view name, const Vocabulary& all) {
  const auto value = config.find(name);
  if (!value) return std::nullopt;
  Json number = *value;
  if (value->is_array()) {
    if (value->array().size() == 0) return std::nullopt;
    number = value->item(value->array().at(0), 0);
  }
  const std::int64_t id = number.integer();
  if (id < 0) return std::nullopt;  // -1: none
  if (id >= all.size()) number.refuse(fmt::format("id {} isn't in the vocabulary of {}", id, all.size()));
  return static_cast<std::int32_t>(id);
}

void read_special(const std::filesystem::path& folder, TokenizerJson& parsed) {
  std::optional<std::int32_t> bos, eos, unk, pad;
  const auto take = [](std::optional<std::int32_t>& id, std::optional<std::int32_t> found) {
    if (!id) id = found;
  };
  for (const char* name :
       {"tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"}) {
    const auto path = folder / name;
    if (!std::filesystem::is_regular_file(path)) continue;
    const JsonFile file(path.string(), read_file(path));
    const Json config = file.root();
    const bool tokens = name[0] == 't' || name[0] == 's';
    const auto read = tokens ? id_of_token : id_of_number;
    const char* const kind = tokens ? "" : "_id";
    take(bos, read(config, std::string("bos_token") + kind, parsed.all));
    take(eos, read(config, std::string("eos_token") + kind, parsed.all));
    take(pad, read(config, std::string("pad_token") + kind, parsed.all));
    if (!tokens) continue;
    take(unk, read(config, "unk_token", parsed.all));
    parsed.split_special = parsed.split_special || config.flag("split_special_tokens", false);
  }
  parsed.special = {bos.value_or(-1), eos.value_or(-1), unk.value_or(parsed.unknown), pad.value_or(-1)};
}

}  // namespace

TokenizerJson parse_tokenizer_json(const std::filesystem::path& path, const std::string& bytes) {
  const JsonFile file(path.string(), bytes);
  const Json root = file.root();
  root.only({"version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"});
  TokenizerJson parsed;
  if (const auto node = root.find("normalizer")) {
    each_step(*node, "normalizers", [&](const Json& step) { parsed.normalizer.push_back(normalizer_step(step)); });
  }
  if (const auto node = root.find("pre_tokenizer")) {
    each_step(*node, "pretokenizers", [&](const Json& step) { parsed.splits.push_back(split_step(step)); });
    check_splits(*node, parsed.splits);
  }
  if (const auto node = root.find("decoder")) {
    each_step(*node, "decoders", [&](const Json& step) { parsed.decoder.push_back(decoder_step(step)); });
  }
  if (const auto node = root.find("post_processor")) check_post_processor(*node);
  PieceTable table;
  const std::size_t model_pieces = read_model(root.at("model"), parsed, table);
  if (const auto node = root.find("added_tokens")) read_added(*node, model_pieces, parsed, table);
  parsed.all = Vocabulary(table.pieces());
  read_special(path.parent_path(), parsed);
  return parsed;
}

}  // namespace dropcycle
