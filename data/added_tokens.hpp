// Added tokens of tokenizer.json: strings that are looked for in the text and become one id each, whatever the model.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dropcycle {

struct AddedToken {
  std::string content;
  std::int32_t id = -1;
  bool left_strip = false, right_strip = false;  // takes the white space before or after it along
  bool normalized = false;                       // looked for in the normalized text
  bool special = false;                          // decodes to nothing
};

class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // Cuts `text` into what is between tokens, between(place, string_view), and tokens, token(id), in order. Of tokens
  // that begin at the same place the longest counts.
  template <class Between, class Token>
  void cut(std::string_view text, Between&& between, Token&& token) const {
    std::size_t done = 0;
    if (!tokens_.empty()) {
      for (Match match = find(text, 0); match.token != nullptr; match = find(text, match.end)) {
        const std::size_t begin = match.token->left_strip ? std::max(done, left_of(text, match.begin)) : match.begin;
        if (begin > done) between(done, text.substr(done, begin - done));
        token(match.token->id);
        done = match.token->right_strip ? right_of(text, match.end) : match.end;
      }
    }
    if (done < text.size()) between(done, text.substr(done));
  }

 private:
  struct Match {
    std::size_t begin = 0, end = 0;
    const AddedToken* token = nullptr;
  };
  Match find(std::string_view text, std::size_t from) const;
  // Where the white space before, or after, `place` ends.
  static std::size_t left_of(std::string_view text, std::size_t place);
  static std::size_t right_of(std::string_view text, std::size_t place);

  std::vector<AddedToken> tokens_;  // in the order of their contents
  std::bitset<256> leads_;          // first bytes
};

}  // namespace dropcycle
