// What Dropcycle needs to know of a SentencePiece model file beyond the library's interface: its pieces and how it
// treats text. The file is a protocol buffer (sentencepiece_model.proto of SentencePiece).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dropcycle {

struct ModelProto {
  enum class PieceType { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  struct Piece {
    std::string_view text;  // into the file's bytes
    float score = 0;
    PieceType type = PieceType::normal;
  };
  std::vector<Piece> pieces;
  int model_type = 1;  // 1 unigram, 2 BPE, 3 word, 4 char
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  bool changes_characters = false;  // has a table of normalisation
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Throws Error{input} naming `name` if the bytes aren't a protocol buffer of that kind.
ModelProto parse_model_proto(std::string_view bytes, const std::string& name);

}  // namespace dropcycle
