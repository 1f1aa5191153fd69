// Byte-pair encoding (Sennrich et al., 2016): a part of a text begins as its smallest symbols; of all neighbours that
// the list of merges has, those that stand first in the list are joined, the leftmost of equals first, until none is
// left. The same ids as the `tokenizers` library.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pair_set.hpp"
#include "vocabulary.hpp"

namespace dropcycle {

struct BpeRules {
  struct Merge {
    std::int32_t left, right, result;
  };
  std::vector<Merge> merges;   // the first is applied first; of equal pairs the last one counts
  bool byte_level = false;     // the smallest symbols are bytes, written as letters (byte_letters.hpp); else characters
  bool byte_fallback = false;  // a character without a piece becomes its bytes' pieces <0x00>...
  bool fuse_unknown = false;   // unknown neighbours become one unknown
  bool ignore_merges = false;  // a part that is a piece is that piece, whatever the merges
  std::int32_t unknown = -1;   // for what has no symbol; -1: it is left out
};

class Bpe {
 public:
  // Pieces of the model alone, without added tokens. `name` of the file for errors.
  Bpe(const Vocabulary& pieces, const BpeRules& rules);

  class Scratch {
    friend class Bpe;
    struct Symbol {
      std::int32_t id;
      std::int32_t previous, next;  // -1: none; `id` -1: joined to its left neighbour
    };
    struct Candidate {
      std::uint32_t rank, place;
      std::int32_t left, right;
    };
    std::vector<std::int32_t> ids;
    std::vector<std::uint32_t> ranks;
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };
  // Appends the ids of one part, valid UTF-8: of whole(part) if there is such a piece, else what the merges make of it.
  void encode(std::string_view part, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void merge(std::string_view part, Scratch& scratch, std::vector<std::int32_t>& ids) const;

  // Whether the merges of a part may be found in pieces, cut between neighbours that don't join.
  bool can_cut() const { return pairs_.has_value(); }
  bool joins(std::uint32_t left, std::uint32_t right) const { return pairs_->has(left, right); }
  // The id of a part that has to be taken as a whole (ignore_merges); -1 if there is none.
  std::int32_t whole(std::string_view part) const;

 private:
  struct Found {
    std::uint32_t rank = kNone;
    std::int32_t result = -1;
  };
  struct Place {  // of the table of merges, open addressing
    std::uint64_t pair = kNoPair;
    Found found;
  };
  static constexpr std::uint32_t kNone = 0xffffffffU;
  static constexpr std::uint64_t kNoPair = ~std::uint64_t{0};

  void fill_table(const std::vector<BpeRules::Merge>& merges);
  void find_symbols(const Vocabulary& pieces);
  void find_cuts(const Vocabulary& pieces, const std::vector<BpeRules::Merge>& merges);
  const Found& find(std::int32_t left, std::int32_t right) const;
  void add_symbols(std::string_view part, std::vector<std::int32_t>& ids) const;
  void merge_few(Scratch& scratch) const;
  void merge_many(Scratch& scratch) const;

  BpeRules rules_;  // without merges
  std::vector<Place> table_;
  unsigned shift_ = 0;
  std::array<std::int32_t, 256> byte_ids_{};                   // of a byte: byte level, or fallback
  std::array<std::int32_t, 128> ascii_ids_{};                  // of a character
  std::unordered_map<std::uint32_t, std::int32_t> other_ids_;  // of the characters above U+007F
  std::optional<PairSet> pairs_;
  std::unordered_map<std::string, std::int32_t> wholes_;  // with ignore_merges: pieces as the text has them
  std::size_t longest_whole_ = 0;
  Found missing_;
};

}  // namespace dropcycle
