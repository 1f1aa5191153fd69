// A tokenizer.json at work: added tokens, normalizer, pre-tokenizer, model; and decoders.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "byte_letters.hpp"
#include "dropcycle/core/error.hpp"
#include "part_cache.hpp"
#include "tokenizer_json.hpp"
#include "unigram.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

Unigram::Pieces json_unigram_pieces(const TokenizerJson& parsed) {
  constexpr double kPenalty = 10;  // of the unknown, below the lowest score
  Unigram::Pieces pieces;
  pieces.unknown_id = parsed.unknown;
  double lowest = std::numeric_limits<double>::max();
  for (std::int32_t id = 0; id < parsed.pieces.size(); ++id) {
    const double score = as_the_library_reads(parsed.scores[static_cast<std::size_t>(id)]);
    lowest = std::min(lowest, score);
    if (!parsed.pieces.piece(id).empty()) pieces.entries.push_back({parsed.pieces.piece(id), id, score});
  }
  pieces.unknown_score = lowest - kPenalty;
  for (unsigned byte = 0; byte < 256; ++byte) {
    pieces.byte_ids[byte] = parsed.pieces.find(fmt::format("<0x{:02X}>", byte));
  }
  return pieces;
}

class JsonModel : public TextModel {
 public:
  explicit JsonModel(TokenizerJson parsed);

  std::unique_ptr<TextModel::Scratch> make_scratch(bool remember) const override {
    return std::make_unique<Scratch>(remember && bpe_.has_value());
  }
  void encode(std::string_view text, TextModel::Scratch& given, std::vector<std::int32_t>& ids) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::int64_t vocab_size() const override { return all_.size(); }
  std::string piece(std::int32_t id) const override { return std::string(all_.piece(id)); }
  SpecialIds special_ids() const override { return special_; }
  std::string describe() const override;

 private:
  struct Scratch : TextModel::Scratch {
    explicit Scratch(bool remember) : cache(remember) {}
    PartCache cache;
    std::string repaired, normalized, spare;
    Splitter::Scratch split;
    Bpe::Scratch bpe;
    Unigram::Scratch places;
  };
  // `first`: `text` begins where all does.
  void encode_section(std::string_view text, bool first, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void encode_part(std::string_view part, Scratch& scratch, std::vector<std::int32_t>& ids) const;

  Vocabulary all_;
  SpecialIds special_;
  std::vector<bool> is_special_;
  Normalizer normalizer_;
  Splitter splitter_;
  AddedTokenFinder raw_tokens_, normalized_tokens_;
  std::optional<Bpe> bpe_;
  std::optional<Unigram> unigram_;
  std::vector<DecoderStep> decoder_;
};

JsonModel::JsonModel(TokenizerJson parsed)
    : all_(std::move(parsed.all)),
      special_(parsed.special),
      is_special_(static_cast<std::size_t>(all_.size()), false),
      normalizer_(std::move(parsed.normalizer)),
      splitter_(parsed.splits),
      decoder_(std::move(parsed.decoder)) {
  std::vector<AddedToken> raw, normalized;
  std::string result, spare;
  for (auto& token : parsed.added) {
    is_special_[static_cast<std::size_t>(token.id)] = token.special;
    if (token.special && parsed.split_special) continue;
    if (!token.normalized) {
      raw.push_back(std::move(token));
      continue;
    }
    token.content = std::string(normalizer_.apply(token.content, result, spare));
    if (!token.content.empty()) normalized.push_back(std::move(token));
  }
  raw_tokens_ = AddedTokenFinder(std::move(raw));
  normalized_tokens_ = AddedTokenFinder(std::move(normalized));
  if (parsed.unigram) {
    unigram_.emplace(json_unigram_pieces(parsed));
  } else {
    bpe_.emplace(parsed.pieces, parsed.bpe);
  }
}

void JsonModel::encode(std::string_view text, TextModel::Scratch& given, std::vector<std::int32_t>& ids) const {
  auto& scratch = static_cast<Scratch&>(given);
  const auto add = [&](std::int32_t id) { ids.push_back(id); };
  const auto section = [&](std::size_t place, std::string_view between) {
    const std::string_view normalized = normalizer_.apply(between, scratch.normalized, scratch.spare);
    normalized_tokens_.cut(
        normalized,
        [&](std::size_t inner, std::string_view rest) { encode_section(rest, place + inner == 0, scratch, ids); }, add);
  };
  raw_tokens_.cut(whole_utf8(text, scratch.repaired), section, add);
}

void JsonModel::encode_section(std::string_view text, bool first, Scratch& scratch,
                               std::vector<std::int32_t>& ids) const {
  if (unigram_) {
    splitter_.split(text, first, scratch.split,
                    [&](std::string_view part) { unigram_->encode(part, scratch.places, ids); });
    return;
  }
  splitter_.split(text, first, scratch.split, [&](std::string_view part) { encode_part(part, scratch, ids); });
}

void JsonModel::encode_part(std::string_view part, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (!bpe_->can_cut()) {
    scratch.cache.append(part, ids, [&](auto word, auto& out) { bpe_->encode(word, scratch.bpe, out); });
    return;
  }
  const auto merge = [&](auto word, auto& out) { bpe_->merge(word, scratch.bpe, out); };
  if (const std::int32_t id = bpe_->whole(part); id >= 0) {
    ids.push_back(id);
    return;
  }
  std::size_t begin = 0;
  CodePoint left = first_code_point(part);
  for (std::size_t place = left.size; place < part.size();) {
    const CodePoint right = first_code_point(part.substr(place));
    if (!bpe_->joins(left.value, right.value)) {
      scratch.cache.append(part.substr(begin, place - begin), ids, merge);
      begin = place;
    }
    place += right.size;
    left = right;
  }
  scratch.cache.append(part.substr(begin), ids, merge);
}

std::string JsonModel::decode(std::span<const std::int32_t> ids) const {
  std::vector<std::string> pieces;
  for (const std::int32_t id : ids) {
    if (!is_special_[static_cast<std::size_t>(id)] && !all_.piece(id).empty()) pieces.emplace_back(all_.piece(id));
  }
  return decode_pieces(decoder_, std::move(pieces));
}

std::string JsonModel::describe() const {
  return fmt::format("type           {}, tokenizer.json", unigram_                 ? "unigram with byte fallback"
                                                          : splitter_.byte_level() ? "byte-level BPE"
                                                                                   : "BPE of characters");
}

}  // namespace

std::unique_ptr<TextModel> load_tokenizer_json(const std::filesystem::path& path, std::string bytes) {
  return std::make_unique<JsonModel>(parse_tokenizer_json(path, bytes));
}

}  // namespace dropcycle
