#include "dropcycle/data/tokenizer.hpp"

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "model_proto.hpp"
#include "unigram.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

using sentencepiece::SentencePieceProcessor;

constexpr std::uint32_t kSpacePiece = 0x2581;  // the character that stands for a space inside pieces
constexpr std::string_view kSpacePieceBytes = "\xe2\x96\x81";

// The pairs of characters that stand side by side in some piece: between any other two, a text may be cut. A set of
// hashes, so that it may hold a pair too many (which costs one cut), never one too few.
class PairSet {
 public:
  explicit PairSet(const ModelProto& model) {
    std::size_t characters = 0;
    for (const auto& piece : model.pieces) characters += piece.text.size();
    bits_.resize(std::clamp<std::size_t>(std::bit_ceil(characters * 4), 1U << 16U, 1U << 26U) / 64);
    shift_ = 64U - static_cast<unsigned>(std::countr_zero(bits_.size() * 64));
    for (const auto& piece : model.pieces) add(piece);
  }
  bool has(std::uint32_t left, std::uint32_t right) const {
    const std::size_t place = hash(left, right);
    return (bits_[place / 64] >> (place % 64) & 1U) != 0;
  }

 private:
  void add(const ModelProto::Piece& piece) {
    using Type = ModelProto::PieceType;
    if (piece.type == Type::unknown || piece.type == Type::control || piece.type == Type::byte) return;
    CodePoint left = first_code_point(piece.text);
    for (std::size_t at = left.size; at < piece.text.size();) {
      const CodePoint right = first_code_point(piece.text.substr(at));
      if (right.size == 0) return;
      const std::size_t place = hash(left.value, right.value);
      bits_[place / 64] |= std::uint64_t{1} << (place % 64);
      at += right.size;
      left = right;
    }
  }
  std::size_t hash(std::uint32_t left, std::uint32_t right) const {
    return static_cast<std::size_t>((left * 0x1fffffULL + right) * 0x9e3779b97f4a7c15ULL >> shift_);
  }

  std::vector<std::uint64_t> bits_;
  unsigned shift_ = 0;
};

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

}  // namespace

struct Tokenizer::State {
  std::filesystem::path path;
  std::string digest;
  SentencePieceProcessor processor;
  ModelProto model;  // without pieces
  // Where texts may be cut: the pairs that they may not be cut between, and the model without the space that
  // SentencePiece puts before a text.
  std::optional<PairSet> pairs;
  SentencePieceProcessor part_processor;
  std::optional<Unigram> unigram;

  // The text as unigram sees it; false if it isn't UTF-8 or unigram's own path doesn't fit the model.
  bool escape(std::string_view text, std::string& escaped) const;

  // Calls part(string) for each part of `text`, spaces replaced; false if the text has to be encoded as a whole.
  template <class Part>
  bool cut(std::string_view text, std::string& escaped, Part&& part) const;
};

// A part is the piece of `escaped` (the text as the model sees it) between two cuts.
template <class Part>
bool Tokenizer::State::cut(std::string_view text, std::string& escaped, Part&& part) const {
  if (!pairs || text.empty()) return false;
  escaped.resize((text.size() + 1) * kSpacePieceBytes.size());
  char* const begin = escaped.data();
  char* end = begin;
  char* part_begin = begin;
  std::uint32_t left = 0;
  if (model.add_dummy_prefix) {
    end = std::copy(kSpacePieceBytes.begin(), kSpacePieceBytes.end(), end);
    left = kSpacePiece;
  }
  for (std::size_t place = 0; place < text.size();) {
    CodePoint right = first_code_point(text.substr(place));
    if (right.size == 0) return false;
    const bool space = right.value == ' ';
    if (space) right.value = kSpacePiece;
    if (end != part_begin && !pairs->has(left, right.value)) {
      if (!part(std::string_view(part_begin, end))) return false;
      part_begin = end;
    }
    end = space ? std::copy(kSpacePieceBytes.begin(), kSpacePieceBytes.end(), end)
                : std::copy_n(text.data() + place, right.size, end);
    place += right.size;
    left = right.value;
  }
  return part(std::string_view(part_begin, end));
}

bool Tokenizer::State::escape(std::string_view text, std::string& escaped) const {
  if (!unigram || first_invalid_utf8(text) < text.size()) return false;
  escaped.clear();
  if (model.add_dummy_prefix && !text.empty()) escaped += kSpacePieceBytes;
  while (!text.empty()) {
    const std::size_t space = std::min(text.find(' '), text.size());
    escaped += text.substr(0, space);
    if (space < text.size()) escaped += kSpacePieceBytes;
    text.remove_prefix(std::min(text.size(), space + 1));
  }
  return true;
}

Tokenizer::Tokenizer(const std::filesystem::path& model) : state_(std::make_unique<State>()) {
  std::string bytes = read_file(model);
  state_->path = model;
  state_->digest = dropcycle::digest(bytes);
  state_->model = parse_model_proto(bytes, model.string());
  load(state_->processor, bytes, model.string());
  const bool parts = can_cut(state_->model);
  if (parts && state_->model.model_type == 1) {
    state_->unigram.emplace(state_->model);
  } else if (parts) {
    state_->pairs.emplace(state_->model);
    state_->model.pieces.clear();
    // Messages of protocol buffers join by concatenation: field 3 (normalizer_spec), 2 bytes: add_dummy_prefix = 0.
    bytes += std::string("\x1a\x02\x18\x00", 4);
    load(state_->part_processor, bytes, model.string());
  }
  state_->model.pieces.clear();  // they point into `bytes`
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  std::vector<int> scratch;
  std::string escaped;
  if (state_->escape(text, escaped)) {
    Unigram::Scratch places;
    state_->unigram->encode(escaped, places, ids);
    return ids;
  }
  const bool done = state_->cut(text, escaped, [&](std::string_view part) {
    append_ids(state_->part_processor, part, scratch, ids);
    return true;
  });
  if (!done) {
    ids.clear();
    append_ids(state_->processor, text, scratch, ids);
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) {
      fail(Status::input, "{}: token id {} can't be decoded: ids are 0 to {}", state_->path.string(), id,
           vocab_size() - 1);
    }
  }
  std::string text;
  const auto status = state_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  require(status.ok(), "SentencePiece failed to decode {} ids: {}", ids.size(), status.ToString());
  return text;
}

std::int64_t Tokenizer::vocab_size() const { return state_->processor.GetPieceSize(); }
std::int32_t Tokenizer::bos_id() const { return state_->processor.bos_id(); }
std::int32_t Tokenizer::eos_id() const { return state_->processor.eos_id(); }
std::int32_t Tokenizer::unk_id() const { return state_->processor.unk_id(); }
std::int32_t Tokenizer::pad_id() const { return state_->processor.pad_id(); }
const std::string& Tokenizer::digest() const { return state_->digest; }
const std::filesystem::path& Tokenizer::path() const { return state_->path; }

std::string Tokenizer::piece(std::int32_t id) const {
  require(id >= 0 && id < vocab_size(), "token id {} is outside the vocabulary of {}", id, vocab_size());
  return state_->processor.IdToPiece(id);
}

std::string Tokenizer::describe() const {
  constexpr std::array<const char*, 5> kTypes = {"?", "unigram", "BPE", "word", "character"};
  const int type = state_->model.model_type;
  return fmt::format(
      "tokenizer      {}\ntype           {}\nvocabulary     {}\ndigest         {}\n"
      "unk bos eos pad {} {} {} {} (-1: none)\nbyte fallback  {}\nnormalisation  {}\nencoded        {}",
      state_->path.string(), type >= 1 && type <= 4 ? kTypes[static_cast<std::size_t>(type)] : kTypes[0], vocab_size(),
      digest(), unk_id(), bos_id(), eos_id(), pad_id(), state_->model.byte_fallback ? "yes" : "no",
      state_->model.changes_characters ? "changes characters: decoded text may differ" : "none",
      state_->unigram ? "by our own unigram search"
      : state_->pairs ? "in parts, remembered"
                      : "by SentencePiece");
}

// ---- Encoder

namespace {

// A part and its ids in one cache line.
struct alignas(64) Slot {
  static constexpr std::size_t kKeyBytes = 38, kIds = 6;
  std::uint8_t key_bytes = 0, ids = 0;
  std::array<char, kKeyBytes> key;
  std::array<std::int32_t, kIds> id;

  bool holds(std::string_view part) const {
    return key_bytes == part.size() && std::memcmp(key.data(), part.data(), part.size()) == 0;
  }
  void set(std::string_view part, std::span<const std::int32_t> values) {
    key_bytes = static_cast<std::uint8_t>(part.size());
    ids = static_cast<std::uint8_t>(values.size());
    std::copy(part.begin(), part.end(), key.begin());
    std::copy(values.begin(), values.end(), id.begin());
  }
};
static_assert(sizeof(Slot) == 64);
constexpr std::size_t kSlots = std::size_t{1} << 16U;  // 4 MiB

}  // namespace

struct Encoder::State {
  const Tokenizer::State& tokenizer;
  std::vector<Slot> slots;
  std::vector<int> scratch;
  std::string escaped;
  Unigram::Scratch places;

  void encode_part(std::string_view part, std::vector<std::int32_t>& ids) {
    if (part.size() > Slot::kKeyBytes) {
      append_ids(tokenizer.part_processor, part, scratch, ids);
      return;
    }
    Slot& slot = slots[XXH3_64bits(part.data(), part.size()) % kSlots];
    if (slot.holds(part)) {
      ids.insert(ids.end(), slot.id.begin(), slot.id.begin() + slot.ids);
      return;
    }
    const std::size_t before = ids.size();
    append_ids(tokenizer.part_processor, part, scratch, ids);
    if (ids.size() - before <= Slot::kIds) slot.set(part, std::span(ids).subspan(before));
  }
};

Encoder::Encoder(const Tokenizer& tokenizer)
    : state_(std::make_unique<State>(
          State{*tokenizer.state_, std::vector<Slot>(tokenizer.state_->pairs ? kSlots : 0), {}, {}, {}})) {}
Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&&) noexcept = default;

void Encoder::encode(std::string_view text, std::vector<std::int32_t>& ids) {
  if (state_->tokenizer.escape(text, state_->escaped)) {
    state_->tokenizer.unigram->encode(state_->escaped, state_->places, ids);
    return;
  }
  const std::size_t before = ids.size();
  const bool done = state_->tokenizer.cut(text, state_->escaped, [&](std::string_view part) {
    state_->encode_part(part, ids);
    return true;
  });
  if (!done) {
    ids.resize(before);
    append_ids(state_->tokenizer.processor, text, state_->scratch, ids);
  }
}

}  // namespace dropcycle
