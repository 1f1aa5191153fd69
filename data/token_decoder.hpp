// Decoders of tokenizer.json: from pieces back to text.
#pragma once

#include <string>
#include <vector>

namespace dropcycle {

struct DecoderStep {
  enum class Kind {
    bytes,        // letters to bytes (byte_letters.hpp); what isn't UTF-8 becomes U+FFFD
    replace,      // every `from` by `to`, in each piece
    byte_pieces,  // pieces <0x41> to characters; runs that aren't UTF-8 to one U+FFFD a byte
    fuse,         // all pieces become one
    strip,        // up to `start` of `from` off the beginning of each piece, up to `stop` off its end
    space_signs,  // `from` becomes a space, in the first piece nothing where `start` is 1 (Metaspace)
  };
  Kind kind;
  std::string from, to;
  std::size_t start = 0, stop = 0;
};

// The text of `pieces`; without steps they are joined by spaces, as the `tokenizers` library does.
std::string decode_pieces(const std::vector<DecoderStep>& steps, std::vector<std::string> pieces);

}  // namespace dropcycle
