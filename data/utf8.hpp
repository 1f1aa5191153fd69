// UTF-8, strictly (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace dropcycle {

struct CodePoint {
  std::uint32_t value = 0;
  unsigned size = 0;  // bytes; 0: the text doesn't begin with a whole, valid character
};

inline CodePoint first_code_point(std::string_view text) {
  if (text.empty()) return {};
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80U) return {lead, 1};
  const unsigned size = lead >= 0xf0U ? 4 : lead >= 0xe0U ? 3 : 2;
  if (lead < 0xc2U || lead > 0xf4U || text.size() < size) return {};
  std::uint32_t value = lead & (0x7fU >> size);
  for (unsigned i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0U) != 0x80U) return {};
    value = value << 6 | (byte(i) & 0x3fU);
  }
  const bool overlong = (size == 3 && value < 0x800U) || (size == 4 && value < 0x10000U);
  if (overlong || (value >= 0xd800U && value < 0xe000U) || value > 0x10ffffU) return {};
  return {value, size};
}

inline void append_utf8(std::uint32_t value, std::string& text) {
  const auto add = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
  if (value < 0x80U) return add(value);
  if (value < 0x800U) {
    add(0xc0U | value >> 6U);
  } else {
    if (value < 0x10000U) {
      add(0xe0U | value >> 12U);
    } else {
      add(0xf0U | value >> 18U);
      add(0x80U | (value >> 12U & 0x3fU));
    }
    add(0x80U | (value >> 6U & 0x3fU));
  }
  add(0x80U | (value & 0x3fU));
}

// The place of the first byte that isn't part of a valid character; text.size() if all is valid.
inline std::size_t first_invalid_utf8(std::string_view text) {
  std::size_t place = 0;
  while (place < text.size()) {
    const CodePoint point = first_code_point(text.substr(place));
    if (point.size == 0) return place;
    place += point.size;
  }
  return place;
}

inline constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

// `text` with U+FFFD for each maximal part of a character that isn't whole (Unicode 15, section 3.9); in `repaired`, or
// `text` itself where all is valid.
inline std::string_view whole_utf8(std::string_view text, std::string& repaired) {
  std::size_t place = first_invalid_utf8(text);
  if (place == text.size()) return text;
  repaired.clear();
  while (place < text.size()) {
    (repaired += text.substr(0, place)) += kReplacement;
    text.remove_prefix(place);
    // The longest beginning that some way of going on makes a character; at least one byte.
    std::size_t bad = 1;
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t size = lead < 0xc2U ? 1 : lead < 0xe0U ? 2 : lead < 0xf0U ? 3 : lead < 0xf5U ? 4 : 1;
    std::string start(text.substr(0, 1));
    for (; bad < size && bad < text.size(); ++bad) {
      start += text[bad];
      bool possible = false;
      for (const char fill : {'\x80', '\xbf'}) {
        possible = possible || first_code_point(start + std::string(size - start.size(), fill)).size > 0;
      }
      if (!possible) break;
    }
    text.remove_prefix(bad);
    place = first_invalid_utf8(text);
  }
  repaired += text;
  return repaired;
}

}  // namespace dropcycle
