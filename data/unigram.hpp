// Unigram segmentation (Kudo, 2018): of all ways to write a text as pieces, the one whose scores sum highest.
// The same ids as the `tokenizers` library, whose rules and rounding it keeps (sums in double from the text's start,
// the first found of equals). SentencePiece sums in float: after some thousand pieces it can't tell apart ways to write
// a word whose scores differ by less than 0.001, and takes one or the other.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model_proto.hpp"

namespace dropcycle {

// The pieces as a trie in one array (double-array trie; Aoe, 1989): from node `n`, byte b leads to node
// base + b + 1 if that one's parent is n.
class Unigram {
 public:
  struct Entry {
    std::string_view text;
    std::int32_t id;
    double score;
  };
  struct Pieces {
    std::vector<Entry> entries;  // all that the text may be written with
    std::array<std::int32_t, 256> byte_ids{};
    std::int32_t unknown_id = 0;  // a character without a piece: its bytes
    double unknown_score = 0;
  };
  explicit Unigram(Pieces pieces);

  // What an encoding needs besides the text; kept between calls to save allocations.
  class Scratch {
    friend class Unigram;
    struct Place {
      double score;
      std::int32_t id;
      std::uint32_t length;  // of the best piece that ends here; 0: none does
    };
    std::vector<Place> places;
    std::vector<std::int32_t> reversed;
  };
  // Appends the ids of `text`: valid UTF-8, spaces already replaced. Memory: 16 bytes per byte of the longest stretch
  // that pieces of the text span without a gap, which is a word or so.
  void encode(std::string_view text, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  struct Unit {
    std::uint32_t base = 0;  // kPieceEnds is set where a piece ends
    std::uint32_t parent = kNone;
  };
  struct End {  // of a piece
    std::int32_t id = -1;
    double score = 0;
  };
  static constexpr std::uint32_t kPieceEnds = 0x80000000U;
  static constexpr std::uint32_t kNone = 0xffffffffU;
  struct Range {  // of the sorted pieces that share their first `depth` bytes, which lead to `node`
    std::uint32_t node, first, last;
    std::uint32_t depth;
  };
  void build(const std::vector<Entry>& sorted);
  std::uint32_t find_base(const std::vector<unsigned>& labels);
  // The bytes, last first; of neighbours that together read as the unknown piece, that piece.
  void push_unknown(std::string_view text, std::vector<std::int32_t>& reversed) const;
  void backtrack(std::string_view text, std::size_t begin, std::size_t end, Scratch& scratch,
                 std::vector<std::int32_t>& ids) const;

  std::vector<Unit> units_;
  std::vector<End> ends_;  // beside units_, looked at only where a piece ends
  std::uint32_t first_free_ = 1;
  double unknown_score_ = 0;
  std::int32_t unknown_id_ = 0;
  std::string unknown_text_;  // of its own piece, if that is one of the entries
  std::array<std::int32_t, 256> byte_ids_{};
};

// Of a SentencePiece model; the texts point into the file's bytes. The sums are, to the last bit, those that the
// `tokenizers` library forms with what write_huggingface() writes.
Unigram::Pieces unigram_pieces(const ModelProto& model);

// A score that every way to write a text of 64 characters beats: of pieces that no text may become.
double never_score(const ModelProto& model);

// `value` as the `tokenizers` library reads its shortest decimal: digits / 10^k, rounded twice.
double as_the_library_reads(double value);

}  // namespace dropcycle
