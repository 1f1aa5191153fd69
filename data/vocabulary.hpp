// The pieces of a tokenizer by id, and ids by piece.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dropcycle {

class Vocabulary {
 public:
  Vocabulary() = default;
  // `pieces[id]`; an empty one stands for an id without a piece.
  explicit Vocabulary(const std::vector<std::string_view>& pieces) {
    std::size_t bytes = 0;
    for (const auto piece : pieces) bytes += piece.size();
    text_.reserve(bytes);  // it never moves: by_text_ points into it
    ends_.reserve(pieces.size());
    by_text_.reserve(pieces.size());
    for (const auto piece : pieces) {
      text_.insert(text_.end(), piece.begin(), piece.end());
      ends_.push_back(text_.size());
      if (!piece.empty()) by_text_.emplace(this->piece(size() - 1), size() - 1);
    }
  }
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::int32_t size() const { return static_cast<std::int32_t>(ends_.size()); }
  std::string_view piece(std::int32_t id) const {
    const auto index = static_cast<std::size_t>(id);
    const std::size_t begin = index == 0 ? 0 : ends_[index - 1];
    return {text_.data() + begin, ends_[index] - begin};
  }
  // -1 where there is no such piece.
  std::int32_t find(std::string_view piece) const {
    const auto found = by_text_.find(piece);
    return found == by_text_.end() ? -1 : found->second;
  }

 private:
  std::vector<char> text_;  // a vector: its bytes stay where they are when it is moved
  std::vector<std::size_t> ends_;
  std::unordered_map<std::string_view, std::int32_t> by_text_;
};

}  // namespace dropcycle
