// Pre-tokenizers of tokenizer.json: how a normalized text is cut into the parts that the model encodes one by one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pattern.hpp"

namespace dropcycle {

struct SplitStep {
  enum class Kind {
    pattern,      // each match and what is between matches (Split, Isolated)
    digits,       // each numeric character (Digits)
    digit_runs,   // runs of them
    space_signs,  // spaces become `sign`, one is put before the text (Metaspace)
    bytes,        // the model sees bytes as letters (ByteLevel); always last
  };
  enum class Prefix { never, first, always };

  Kind kind;
  std::string expression, where;  // pattern: and its place in the file
  std::string sign;               // space_signs
  Prefix prefix = Prefix::never;  // space_signs; bytes: always or never a space before each part
  bool cut = false;               // space_signs: before every sign; bytes: by GPT-2's pattern
};

class Splitter {
 public:
  Splitter() = default;
  // Throws Error{input} for a pattern (see Pattern).
  explicit Splitter(const std::vector<SplitStep>& steps);

  struct Scratch {
    Pattern::Scratch match;
    std::string text;
  };

  // Calls part(string_view) for each part of `text`; `first`: it stands at the very beginning of what is encoded.
  template <class Part>
  void split(std::string_view text, bool first, Scratch& scratch, Part&& part) const {
    if (text.empty()) return;
    text = change(text, first, scratch);
    split_from(0, text, scratch, part);
  }
  bool byte_level() const { return byte_level_; }

 private:
  struct Cut {
    enum class Kind { pattern, digits, digit_runs, signs } kind;
    std::optional<Pattern> pattern;
  };

  std::string_view change(std::string_view text, bool first, Scratch& scratch) const;
  // The next piece of `text` from `from` on: its end. Pieces are what `cut` separates, one after another.
  std::size_t end_of_piece(const Cut& cut, std::string_view text, std::size_t from, Pattern::Match& match,
                           Scratch& scratch) const;

  template <class Part>
  void split_from(std::size_t depth, std::string_view text, Scratch& scratch, Part&& part) const {
    if (depth == cuts_.size()) {
      part(text);
      return;
    }
    Pattern::Match match;  // the next one, found when begin == end == 0 or behind it
    for (std::size_t place = 0; place < text.size();) {
      const std::size_t end = end_of_piece(cuts_[depth], text, place, match, scratch);
      split_from(depth + 1, text.substr(place, end - place), scratch, part);
      place = end;
    }
  }

  std::vector<Cut> cuts_;
  std::string sign_, space_ = " ";
  SplitStep::Prefix prefix_ = SplitStep::Prefix::never;
  bool byte_level_ = false;
};

}  // namespace dropcycle
