// UTF-8, strictly (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF).
#pragma once

#include <cstdint>
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

}  // namespace dropcycle
