#include "added_tokens.hpp"

#include <algorithm>

#include "utf8.hpp"

namespace dropcycle {
namespace {

bool is_space(std::uint32_t point) {  // Unicode's White_Space
  return (point >= 0x9 && point <= 0xd) || point == 0x20 || point == 0x85 || point == 0xa0 || point == 0x1680 ||
         (point >= 0x2000 && point <= 0x200a) || point == 0x2028 || point == 0x2029 || point == 0x202f ||
         point == 0x205f || point == 0x3000;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(), [](const auto& a, const auto& b) { return a.content < b.content; });
  for (const auto& token : tokens_) leads_.set(static_cast<unsigned char>(token.content.front()));
}

AddedTokenFinder::Match AddedTokenFinder::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!leads_.test(static_cast<unsigned char>(text[begin]))) continue;
    // [first, last) are the tokens that begin as the text does, for ever more bytes.
    auto first = tokens_.begin(), last = tokens_.end();
    Match match;
    for (std::size_t depth = 0; first != last && begin + depth < text.size(); ++depth) {
      const char byte = text[begin + depth];
      const auto at = [depth](const AddedToken& token) { return static_cast<unsigned char>(token.content[depth]); };
      first = std::partition_point(first, last, [&](const auto& t) {
        return t.content.size() <= depth || at(t) < static_cast<unsigned char>(byte);
      });
      last =
          std::partition_point(first, last, [&](const auto& t) { return at(t) == static_cast<unsigned char>(byte); });
      if (first != last && first->content.size() == depth + 1) match = {begin, begin + depth + 1, &*first};
    }
    if (match.token != nullptr) return match;
  }
  return {};
}

std::size_t AddedTokenFinder::left_of(std::string_view text, std::size_t place) {
  while (place > 0) {
    std::size_t begin = place - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0U) == 0x80U) --begin;
    if (!is_space(first_code_point(text.substr(begin)).value)) break;
    place = begin;
  }
  return place;
}

std::size_t AddedTokenFinder::right_of(std::string_view text, std::size_t place) {
  while (place < text.size()) {
    const CodePoint point = first_code_point(text.substr(place));
    if (!is_space(point.value)) break;
    place += point.size;
  }
  return place;
}

}  // namespace dropcycle
