#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <optional>

#include "dropcycle/core/error.hpp"
#include "model_proto.hpp"
#include "pair_set.hpp"
#include "part_cache.hpp"
#include "text_model.hpp"
#include "unigram.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

using sentencepiece::SentencePieceProcessor;

constexpr std::uint32_t kSpacePiece = 0x2581;  // the character that stands for a space inside pieces
constexpr std::string_view kSpacePieceBytes = "\xe2\x96\x81";

std::vector<std::string_view> text_pieces(const ModelProto& model) {
  using Type = ModelProto::PieceType;
  std::vector<std::string_view> texts;
  for (const auto& piece : model.pieces) {
    if (piece.type != Type::unknown && piece.type != Type::control && piece.type != Type::byte) {
      texts.push_back(piece.text);
    }
  }
  return texts;
}

// Whether parts between cuts encode independently (see Encoder). Without byte fallback SentencePiece joins unknown
// characters that stand side by side.
bool can_cut(const ModelProto& model) {
  const bool spaces_in_symbols = std::any_of(model.pieces.begin(), model.pieces.end(), [](const auto& piece) {
    return piece.type == ModelProto::PieceType::user_defined && piece.text.find(' ') != std::string_view::npos;
  });
  return (model.model_type == 1 || model.model_type == 2) && model.byte_fallback && !model.changes_characters &&
         !model.remove_extra_whitespaces && model.escape_whitespaces && !model.whitespace_as_suffix &&
         !spaces_in_symbols;
}

void load(SentencePieceProcessor& processor, const std::string& bytes, const std::string& name) {
  const auto status = processor.LoadFromSerializedProto(bytes);
  if (!status.ok()) {
    fail(Status::input, "{}: SentencePiece can't read it ({}): give the .model file of a tokenizer", name,
         status.message());
  }
}

void append_ids(const SentencePieceProcessor& processor, std::string_view text, std::vector<int>& scratch,
                std::vector<std::int32_t>& ids) {
  const auto status = processor.Encode(absl::string_view(text.data(), text.size()), &scratch);
  require(status.ok(), "SentencePiece failed to encode {} bytes: {}", text.size(), status.ToString());
  ids.insert(ids.end(), scratch.begin(), scratch.end());
}

class SentencePieceModel : public TextModel {
 public:
  SentencePieceModel(const std::filesystem::path& path, std::string bytes);

  std::unique_ptr<TextModel::Scratch> make_scratch(bool remember) const override {
    return std::make_unique<Scratch>(remember && pairs_.has_value());
  }
  void encode(std::string_view text, TextModel::Scratch& given, std::vector<std::int32_t>& ids) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  std::string piece(std::int32_t id) const override { return processor_.IdToPiece(id); }
  SpecialIds special_ids() const override {
    return {processor_.bos_id(), processor_.eos_id(), processor_.unk_id(), processor_.pad_id()};
  }
  std::string describe() const override;

 private:
  struct Scratch : TextModel::Scratch {
    explicit Scratch(bool remember) : cache(remember) {}
    PartCache cache;
    std::vector<int> ids;
    std::string escaped;
    Unigram::Scratch places;
  };
  // The text as unigram sees it; false if it isn't UTF-8 or unigram's own path doesn't fit the model.
  bool escape(std::string_view text, std::string& escaped) const;
  // Calls part(string) for each part of `text`, spaces replaced; false if the text has to be encoded as a whole.
  template <class Part>
  bool cut(std::string_view text, std::string& escaped, Part&& part) const;

  SentencePieceProcessor processor_;
  ModelProto model_;  // without pieces
  // Where texts may be cut: the pairs that they may not be cut between, and the model without the space that
  // SentencePiece puts before a text.
  std::optional<PairSet> pairs_;
  SentencePieceProcessor part_processor_;
  std::optional<Unigram> unigram_;
};

// A part is the piece of `escaped` (the text as the model sees it) between two cuts.
template <class Part>
bool SentencePieceModel::cut(std::string_view text, std::string& escaped, Part&& part) const {
  if (!pairs_ || text.empty()) return false;
  escaped.resize((text.size() + 1) * kSpacePieceBytes.size());
  char* const begin = escaped.data();
  char* end = begin;
  char* part_begin = begin;
  std::uint32_t left = 0;
  if (model_.add_dummy_prefix) {
    end = std::copy(kSpacePieceBytes.begin(), kSpacePieceBytes.end(), end);
    left = kSpacePiece;
  }
  for (std::size_t place = 0; place < text.size();) {
    CodePoint right = first_code_point(text.substr(place));
    if (right.size == 0) return false;
    const bool space = right.value == ' ';
    if (space) right.value = kSpacePiece;
    if (end != part_begin && !pairs_->has(left, right.value)) {
      part(std::string_view(part_begin, end));
      part_begin = end;
    }
    end = space ? std::copy(kSpacePieceBytes.begin(), kSpacePieceBytes.end(), end)
                : std::copy_n(text.data() + place, right.size, end);
    place += right.size;
    left = right.value;
  }
  part(std::string_view(part_begin, end));
  return true;
}

bool SentencePieceModel::escape(std::string_view text, std::string& escaped) const {
  if (!unigram_ || first_invalid_utf8(text) < text.size()) return false;
  escaped.clear();
  if (model_.add_dummy_prefix && !text.empty()) escaped += kSpacePieceBytes;
  while (!text.empty()) {
    const std::size_t space = std::min(text.find(' '), text.size());
    escaped += text.substr(0, space);
    if (space < text.size()) escaped += kSpacePieceBytes;
    text.remove_prefix(std::min(text.size(), space + 1));
  }
  return true;
}

SentencePieceModel::SentencePieceModel(const std::filesystem::path& path, std::string bytes)
    : model_(parse_model_proto(bytes, path.string())) {
  load(processor_, bytes, path.string());
  const bool parts = can_cut(model_);
  if (parts && model_.model_type == 1) {
    unigram_.emplace(unigram_pieces(model_));
  } else if (parts) {
    pairs_.emplace(text_pieces(model_));
    // Messages of protocol buffers join by concatenation: field 3 (normalizer_spec), 2 bytes: add_dummy_prefix = 0.
    load(part_processor_, bytes + std::string("\x1a\x02\x18\x00", 4), path.string());
  }
  model_.pieces.clear();  // they point into `bytes`
}

void SentencePieceModel::encode(std::string_view text, TextModel::Scratch& given,
                                std::vector<std::int32_t>& ids) const {
  auto& scratch = static_cast<Scratch&>(given);
  if (escape(text, scratch.escaped)) {
    unigram_->encode(scratch.escaped, scratch.places, ids);
    return;
  }
  const std::size_t before = ids.size();
  const auto encode_part = [&](std::string_view part, std::vector<std::int32_t>& out) {
    append_ids(part_processor_, part, scratch.ids, out);
  };
  if (cut(text, scratch.escaped, [&](std::string_view part) { scratch.cache.append(part, ids, encode_part); })) return;
  ids.resize(before);
  append_ids(processor_, text, scratch.ids, ids);
}

std::string SentencePieceModel::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  const auto status = processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  require(status.ok(), "SentencePiece failed to decode {} ids: {}", ids.size(), status.ToString());
  return text;
}

std::string SentencePieceModel::describe() const {
  constexpr std::array<const char*, 5> kTypes = {"?", "unigram", "BPE", "word", "character"};
  const int type = model_.model_type;
  return fmt::format("type           {}, SentencePiece\nbyte fallback  {}\nnormalisation  {}\nencoded        {}",
                     type >= 1 && type <= 4 ? kTypes[static_cast<std::size_t>(type)] : kTypes[0],
                     model_.byte_fallback ? "yes" : "no",
                     model_.changes_characters ? "changes characters: decoded text may differ" : "none",
                     unigram_ ? "by our own unigram search"
                     : pairs_ ? "in parts, remembered"
                              : "by SentencePiece");
}

}  // namespace

std::unique_ptr<TextModel> load_sentencepiece(const std::filesystem::path& path, std::string bytes) {
  return std::make_unique<SentencePieceModel>(path, std::move(bytes));
}

}  // namespace dropcycle
