// Where a text may be cut under BPE: merges make nothing but pieces of the vocabulary, so none crosses a place between
// two characters that no piece has side by side, and the parts between such places encode independently.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

#include "utf8.hpp"

namespace dropcycle {

// The pairs of characters that stand side by side in some piece. A set of hashes, so that it may hold a pair too many
// (which costs one cut), never one too few.
class PairSet {
 public:
  explicit PairSet(const std::vector<std::string_view>& pieces) {
    std::size_t characters = 0;
    for (const auto& piece : pieces) characters += piece.size();
    bits_.resize(std::clamp<std::size_t>(std::bit_ceil(characters * 4), 1U << 16U, 1U << 26U) / 64);
    shift_ = 64U - static_cast<unsigned>(std::countr_zero(bits_.size() * 64));
    for (const auto& piece : pieces) add(piece);
  }
  bool has(std::uint32_t left, std::uint32_t right) const {
    const std::size_t place = hash(left, right);
    return (bits_[place / 64] >> (place % 64) & 1U) != 0;
  }

 private:
  void add(std::string_view piece) {
    CodePoint left = first_code_point(piece);
    for (std::size_t at = left.size; at < piece.size();) {
      const CodePoint right = first_code_point(piece.substr(at));
      if (right.size == 0) return;
      const std::size_t place = hash(left.value, right.value);
      bits_[place / 64] |= std::uint64_t{1} << (place % 64);
      at += right.size;
      left = right;
    }
  }
  std::size_t hash(std::uint32_t left, std::uint32_t right) const {
    return static_cast<std::size_t>((left * 0x1fffffULL + right) * 0x9e3779b97f4a7c15ULL >> shift_);
  }

  std::vector<std::uint64_t> bits_;
  unsigned shift_ = 0;
};

}  // namespace dropcycle
