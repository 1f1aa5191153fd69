// Normalizers of tokenizer.json: what is done to a text before it is split.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dropcycle {

struct NormalizerStep {
  enum class Kind {
    nfc,      // Unicode's canonical composition, with the tables of Unicode 9 as the `tokenizers` library has them
    prepend,  // `to` before a text that isn't empty
    replace,  // every `from` by `to`
  };
  Kind kind;
  std::string from, to;
};

class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}
  // The normalized `text`, valid UTF-8; in `result`, or `text` itself where nothing changes.
  std::string_view apply(std::string_view text, std::string& result, std::string& scratch) const;

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace dropcycle
