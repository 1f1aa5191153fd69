#include "bpe.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "byte_letters.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

constexpr std::size_t kFew = 48;  // symbols; up to here looking at all neighbours is quicker than a heap

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U | static_cast<std::uint32_t>(right);
}
std::uint64_t spread(std::uint64_t key) { return (key ^ key >> 29U) * 0x9e3779b97f4a7c15ULL; }

}  // namespace

Bpe::Bpe(const Vocabulary& pieces, const BpeRules& rules) : rules_(rules) {
  rules_.merges.clear();
  fill_table(rules.merges);
  find_symbols(pieces);
  if (!rules.byte_level) find_cuts(pieces, rules.merges);
  if (!rules.ignore_merges) return;
  for (std::int32_t id = 0; id < pieces.size(); ++id) {
    std::string text(pieces.piece(id));
    if (rules.byte_level) text = bytes_of_letters(text).value_or("");
    if (text.empty()) continue;
    longest_whole_ = std::max(longest_whole_, text.size());
    wholes_.emplace(std::move(text), id);
  }
}

void Bpe::fill_table(const std::vector<BpeRules::Merge>& merges) {
  table_.resize(std::bit_ceil(merges.size() * 2 + 2));
  shift_ = 64U - static_cast<unsigned>(std::countr_zero(table_.size()));
  std::uint32_t rank = 0;
  for (const auto& merge : merges) {
    const std::uint64_t key = pair_key(merge.left, merge.right);
    std::size_t place = spread(key) >> shift_;
    while (table_[place].pair != kNoPair && table_[place].pair != key) place = (place + 1) % table_.size();
    table_[place] = {key, {rank++, merge.result}};
  }
}

const Bpe::Found& Bpe::find(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = pair_key(left, right);
  for (std::size_t place = spread(key) >> shift_;; place = (place + 1) & (table_.size() - 1)) {
    if (table_[place].pair == key) return table_[place].found;
    if (table_[place].pair == kNoPair) return missing_;
  }
}

void Bpe::find_symbols(const Vocabulary& pieces) {
  byte_ids_.fill(-1);
  ascii_ids_.fill(-1);
  for (std::int32_t id = 0; id < pieces.size(); ++id) {
    const std::string_view piece = pieces.piece(id);
    const CodePoint first = first_code_point(piece);
    if (first.size == 0 || first.size != piece.size()) continue;
    if (rules_.byte_level) {
      if (const auto byte = byte_of_letter(first.value)) byte_ids_[*byte] = id;
    } else if (first.value < ascii_ids_.size()) {
      ascii_ids_[first.value] = id;
    } else {
      other_ids_.emplace(first.value, id);
    }
  }
  if (rules_.byte_level || !rules_.byte_fallback) return;
  for (unsigned byte = 0; byte < 256; ++byte) byte_ids_[byte] = pieces.find(fmt::format("<0x{:02X}>", byte));
}

// A text may be cut where nothing joins: all that has no piece of its own becomes bytes, which no merge takes up.
void Bpe::find_cuts(const Vocabulary& pieces, const std::vector<BpeRules::Merge>& merges) {
  const auto is_byte = [&](std::int32_t id) {
    return std::find(byte_ids_.begin(), byte_ids_.end(), id) != byte_ids_.end();
  };
  if (!rules_.byte_fallback || is_byte(-1)) return;
  std::vector<char> bytes(static_cast<std::size_t>(pieces.size()), 0);
  for (const std::int32_t id : byte_ids_) bytes[static_cast<std::size_t>(id)] = 1;
  for (const auto& merge : merges) {
    if (bytes[static_cast<std::size_t>(merge.left)] != 0 || bytes[static_cast<std::size_t>(merge.right)] != 0) return;
  }
  std::vector<std::string_view> texts;
  for (const auto& merge : merges) texts.push_back(pieces.piece(merge.result));
  pairs_.emplace(texts);
}

std::int32_t Bpe::whole(std::string_view part) const {
  if (!rules_.ignore_merges || part.size() > longest_whole_) return -1;
  const auto found = wholes_.find(std::string(part));
  return found == wholes_.end() ? -1 : found->second;
}

void Bpe::add_symbols(std::string_view part, std::vector<std::int32_t>& ids) const {
  bool unknown_last = false;
  const auto add_unknown = [&] {
    if (rules_.unknown >= 0 && !(unknown_last && rules_.fuse_unknown)) ids.push_back(rules_.unknown);
    unknown_last = true;
  };
  if (rules_.byte_level) {
    for (const char byte : part) {
      const std::int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
      if (id < 0) {
        add_unknown();
      } else {
        ids.push_back(id);
        unknown_last = false;
      }
    }
    return;
  }
  while (!part.empty()) {
    const CodePoint point = first_code_point(part);
    const std::string_view character = part.substr(0, point.size);
    part.remove_prefix(point.size);
    std::int32_t id = -1;
    if (point.value < ascii_ids_.size()) {
      id = ascii_ids_[point.value];
    } else if (const auto found = other_ids_.find(point.value); found != other_ids_.end()) {
      id = found->second;
    }
    if (id >= 0) {
      ids.push_back(id);
      unknown_last = false;
      continue;
    }
    const bool bytes = rules_.byte_fallback && std::all_of(character.begin(), character.end(), [&](char byte) {
                         return byte_ids_[static_cast<unsigned char>(byte)] >= 0;
                       });
    if (!bytes) {
      add_unknown();
      continue;
    }
    for (const char byte : character) ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
  }
}

void Bpe::encode(std::string_view part, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (const std::int32_t id = whole(part); id >= 0) {
    ids.push_back(id);
    return;
  }
  merge(part, scratch, ids);
}

void Bpe::merge(std::string_view part, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  scratch.ids.clear();
  add_symbols(part, scratch.ids);
  if (scratch.ids.size() <= kFew) {
    merge_few(scratch);
  } else {
    merge_many(scratch);
  }
  ids.insert(ids.end(), scratch.ids.begin(), scratch.ids.end());
}

// Looks at every neighbour for each merge.
void Bpe::merge_few(Scratch& scratch) const {
  auto& ids = scratch.ids;
  auto& ranks = scratch.ranks;  // ranks[i]: of the pair (i, i + 1)
  if (ids.size() < 2) return;
  ranks.resize(ids.size() - 1);
  for (std::size_t i = 0; i < ranks.size(); ++i) ranks[i] = find(ids[i], ids[i + 1]).rank;
  for (;;) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (best == ranks.end() || *best == kNone) return;
    const std::ptrdiff_t place = best - ranks.begin();
    const auto at = static_cast<std::size_t>(place);
    ids[at] = find(ids[at], ids[at + 1]).result;
    ids.erase(ids.begin() + place + 1);
    ranks.erase(best);
    if (at > 0) ranks[at - 1] = find(ids[at - 1], ids[at]).rank;
    if (at < ranks.size()) ranks[at] = find(ids[at], ids[at + 1]).rank;
  }
}

// Symbols in a linked list, candidates in a heap; those whose symbols have changed are passed over.
void Bpe::merge_many(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  using Candidate = Scratch::Candidate;
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.place > b.place;
  };
  const auto at = [&](std::int32_t place) -> Scratch::Symbol& { return symbols[static_cast<std::size_t>(place)]; };
  const auto count = static_cast<std::int32_t>(scratch.ids.size());
  symbols.clear();
  heap.clear();
  for (std::int32_t i = 0; i < count; ++i) {
    symbols.push_back({scratch.ids[static_cast<std::size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
  }
  for (std::int32_t i = 0; i + 1 < count; ++i) {
    const std::uint32_t rank = find(at(i).id, at(i + 1).id).rank;
    if (rank != kNone) heap.push_back({rank, static_cast<std::uint32_t>(i), at(i).id, at(i + 1).id});
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto offer = [&](std::int32_t left, std::int32_t right) {
    if (left < 0 || right < 0) return;
    const std::uint32_t rank = find(at(left).id, at(right).id).rank;
    if (rank == kNone) return;
    heap.push_back({rank, static_cast<std::uint32_t>(left), at(left).id, at(right).id});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate best = heap.back();
    heap.pop_back();
    const auto place = static_cast<std::int32_t>(best.place);
    auto& left = at(place);
    if (left.id != best.left || left.next < 0 || at(left.next).id != best.right) continue;
    auto& right = at(left.next);
    left.id = find(left.id, right.id).result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = place;
    offer(left.previous, place);
    offer(place, left.next);
  }
  scratch.ids.clear();
  for (std::int32_t place = 0; place >= 0; place = at(place).next) scratch.ids.push_back(at(place).id);
}

}  // namespace dropcycle
