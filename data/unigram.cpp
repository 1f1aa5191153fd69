#include "unigram.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include "dropcycle/core/error.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

using Type = ModelProto::PieceType;
constexpr double kUnknownPenalty = 10;  // below the lowest score by this
constexpr double kUserScore = -0.1;     // SentencePiece's score of user-defined symbols, whatever the model

}  // namespace

double never_score(const ModelProto& model) {
  constexpr double kLongest = 64;
  float lowest = std::numeric_limits<float>::max();
  for (const auto& piece : model.pieces) {
    if (piece.type == Type::normal) lowest = std::min(lowest, piece.score);
  }
  return kLongest * (static_cast<double>(lowest) - kUnknownPenalty);
}

double as_the_library_reads(double value) {
  const std::string text = fmt::format("{}", value);
  std::uint64_t digits = 0;  // at most 17 of them
  int exponent = 0;
  bool fraction = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == 'e') {
      exponent += std::atoi(text.c_str() + i + 1);
      break;
    }
    if (text[i] == '.') fraction = true;
    if (text[i] < '0' || text[i] > '9') continue;
    digits = digits * 10 + static_cast<std::uint64_t>(text[i] - '0');
    exponent -= fraction ? 1 : 0;
  }
  const double size = exponent < 0 ? static_cast<double>(digits) / std::pow(10.0, -exponent)
                                   : static_cast<double>(digits) * std::pow(10.0, exponent);
  return std::copysign(size, value);
}

// A character without a piece is in no other piece either, so what it costs doesn't change the rest of the way.
Unigram::Pieces unigram_pieces(const ModelProto& model) {
  Unigram::Pieces pieces;
  pieces.unknown_score = as_the_library_reads(never_score(model)) - kUnknownPenalty;
  for (std::size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    const auto id = static_cast<std::int32_t>(i);
    if (piece.type == Type::unknown) pieces.unknown_id = id;
    if (piece.type == Type::byte && piece.text.size() == 6) {  // "<0x0A>"
      unsigned value = 0;
      std::from_chars(piece.text.data() + 3, piece.text.data() + 5, value, 16);
      pieces.byte_ids[value] = id;
    }
    if (piece.text.empty() || (piece.type != Type::normal && piece.type != Type::user_defined)) continue;
    pieces.entries.push_back(
        {piece.text, id,
         as_the_library_reads(piece.type == Type::normal ? static_cast<double>(piece.score) : kUserScore)});
  }
  return pieces;
}

Unigram::Unigram(Pieces pieces)
    : unknown_score_(pieces.unknown_score), unknown_id_(pieces.unknown_id), byte_ids_(pieces.byte_ids) {
  auto& entries = pieces.entries;
  for (const Entry& entry : entries) {
    if (entry.id == unknown_id_) unknown_text_ = entry.text;
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.text < b.text; });
  build(entries);
}

// The lowest base, from the first free unit on, at which all labels (bytes + 1) find free units.
std::uint32_t Unigram::find_base(const std::vector<unsigned>& labels) {
  while (first_free_ < units_.size() && units_[first_free_].parent != kNone) ++first_free_;
  std::uint32_t tried = 0;
  for (std::uint32_t place = std::max(first_free_, labels.front() + 1);; ++place) {
    const std::uint32_t base = place - labels.front();
    if (base + 257 >= units_.size()) units_.resize(units_.size() * 2 + 512);
    const bool free =
        std::all_of(labels.begin(), labels.end(), [&](unsigned label) { return units_[base + label].parent == kNone; });
    if (free) return base;
    // Where the array is nearly full, don't look there again.
    if (units_[place].parent != kNone && ++tried > 256) first_free_ = place, tried = 0;
  }
}

void Unigram::build(const std::vector<Entry>& sorted) {
  units_.resize(1024);
  units_[0].parent = 0;
  std::vector<Range> pending = {{0, 0, static_cast<std::uint32_t>(sorted.size()), 0}};
  std::vector<unsigned> labels;
  std::vector<std::uint32_t> begins;
  while (!pending.empty()) {
    Range range = pending.back();
    pending.pop_back();
    if (range.first < range.last && sorted[range.first].text.size() == range.depth) {
      ends_.resize(std::max<std::size_t>(ends_.size(), range.node + 1));
      ends_[range.node] = {sorted[range.first].id, sorted[range.first].score};
      units_[range.node].base = kPieceEnds;
      ++range.first;
    }
    labels.clear();
    begins.clear();
    for (std::uint32_t i = range.first; i < range.last; ++i) {
      require(sorted[i].text.size() > range.depth, "the tokenizer has the piece '{}' twice", sorted[i].text);
      const unsigned label = static_cast<unsigned char>(sorted[i].text[range.depth]) + 1U;
      if (!labels.empty() && labels.back() == label) continue;
      labels.push_back(label);
      begins.push_back(i);
    }
    if (labels.empty()) continue;
    const std::uint32_t base = find_base(labels);
    units_[range.node].base |= base;
    begins.push_back(range.last);
    for (std::size_t c = 0; c < labels.size(); ++c) {
      units_[base + labels[c]].parent = range.node;
      pending.push_back({base + labels[c], begins[c], begins[c + 1], range.depth + 1});
    }
  }
  std::size_t used = units_.size();
  while (used > 1 && units_[used - 1].parent == kNone) --used;
  units_.resize(used + 257);  // any node's children stay within
}

void Unigram::encode(std::string_view text, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  using Place = Scratch::Place;
  const Unit* const units = units_.data();
  auto& places = scratch.places;                // from `begin` on; places[0] is begin
  std::size_t begin = 0, reach = 0, start = 0;  // of this stretch; farthest end of a piece; of the pieces tried now
  double score_here = 0;
  const auto offer = [&](std::size_t end, std::int32_t id, double score) {
    if (end > reach) {
      if (places.size() <= end - begin) places.resize(end - begin + 64);
      for (std::size_t place = reach + 1; place <= end; ++place) places[place - begin].length = 0;
      reach = end;
    }
    Place& place = places[end - begin];
    const double candidate = score + score_here;
    if (place.length == 0 || candidate > place.score) {
      place = {candidate, id, static_cast<std::uint32_t>(end - start)};
    }
  };
  if (places.empty()) places.resize(64);
  while (start < text.size()) {
    if (start > begin) score_here = places[start - begin].score;
    const auto lead = static_cast<unsigned char>(text[start]);
    const std::size_t character = lead < 0x80U ? 1 : lead < 0xe0U ? 2 : lead < 0xf0U ? 3 : 4;
    bool single = false;
    std::uint32_t node = 0, base = units[0].base;
    for (std::size_t end = start; end < text.size();) {
      const std::uint32_t child = base + static_cast<unsigned char>(text[end]) + 1U;
      if (units[child].parent != node) break;
      node = child;
      base = units[node].base;
      ++end;
      if ((base & kPieceEnds) == 0) continue;
      base &= ~kPieceEnds;
      offer(end, ends_[node].id, ends_[node].score);
      single = single || end - start == character;
    }
    if (!single) offer(start + character, unknown_id_, unknown_score_);
    start += character;
    if (start == reach) {  // nothing spans this place: the best way to it is a part of the best way
      score_here = places[start - begin].score;
      backtrack(text, begin, start, scratch, ids);
      begin = start;
    }
  }
}

void Unigram::push_unknown(std::string_view text, std::vector<std::int32_t>& reversed) const {
  if (text == unknown_text_) {
    reversed.push_back(unknown_id_);
    return;
  }
  for (std::size_t byte = text.size(); byte-- > 0;)
    reversed.push_back(byte_ids_[static_cast<unsigned char>(text[byte])]);
}

void Unigram::backtrack(std::string_view text, std::size_t begin, std::size_t end, Scratch& scratch,
                        std::vector<std::int32_t>& ids) const {
  auto& reversed = scratch.reversed;
  reversed.clear();
  std::size_t unknown_end = 0;  // of neighbours without pieces, found so far
  while (end > begin) {
    const auto& place = scratch.places[end - begin];
    const std::size_t start = end - place.length;
    if (place.id != unknown_id_) {
      reversed.push_back(place.id);
    } else {
      if (unknown_end == 0) unknown_end = end;
      if (start == begin || scratch.places[start - begin].id != unknown_id_) {
        push_unknown(text.substr(start, unknown_end - start), reversed);
        unknown_end = 0;
      }
    }
    end = start;
  }
  ids.insert(ids.end(), reversed.rbegin(), reversed.rend());
}

}  // namespace dropcycle
