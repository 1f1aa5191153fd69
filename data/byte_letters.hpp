// The alphabet of byte-level BPE (GPT-2): each byte is written as one printable character. The bytes that Latin-1 shows
// stand for themselves; the others, in order, are U+0100 and on.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "utf8.hpp"

namespace dropcycle {

inline bool is_own_letter(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

inline const std::array<std::uint32_t, 256>& byte_letters() {
  static const auto letters = [] {
    std::array<std::uint32_t, 256> made{};
    std::uint32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) made[byte] = is_own_letter(byte) ? byte : next++;
    return made;
  }();
  return letters;
}

// The byte of a letter; nothing for other characters.
inline std::optional<std::uint8_t> byte_of_letter(std::uint32_t letter) {
  static const auto bytes = [] {
    std::array<std::int16_t, 0x150> made{};
    made.fill(-1);
    for (unsigned byte = 0; byte < 256; ++byte) made[byte_letters()[byte]] = static_cast<std::int16_t>(byte);
    return made;
  }();
  if (letter >= bytes.size() || bytes[letter] < 0) return std::nullopt;
  return static_cast<std::uint8_t>(bytes[letter]);
}

// The bytes that `letters` stand for; nothing if one of them stands for none.
inline std::optional<std::string> bytes_of_letters(std::string_view letters) {
  std::string bytes;
  while (!letters.empty()) {
    const CodePoint letter = first_code_point(letters);
    const auto byte = letter.size == 0 ? std::nullopt : byte_of_letter(letter.value);
    if (!byte) return std::nullopt;
    bytes += static_cast<char>(*byte);
    letters.remove_prefix(letter.size);
  }
  return bytes;
}

}  // namespace dropcycle
