#include "splitter.hpp"

#include <utf8proc.h>

#include <algorithm>

#include "utf8.hpp"

namespace dropcycle {
namespace {

// Pre-tokenization of GPT-2 (Radford et al., 2019): contractions, words, numbers and signs with the space before them.
constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Unicode's category N; utf8proc 2.8 has Unicode 15, the `tokenizers` library 17.
bool is_numeric(std::uint32_t point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(point))) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      break;
  }
  const auto within = [&](std::uint32_t first, std::uint32_t last) { return point >= first && point <= last; };
  return within(0x10d40, 0x10d49) || within(0x116d0, 0x116e3) || within(0x11bf0, 0x11bf9) || within(0x11de0, 0x11de9) ||
         within(0x16130, 0x16139) || within(0x16d70, 0x16d79) || within(0x16ff4, 0x16ff6) || within(0x1ccf0, 0x1ccf9) ||
         within(0x1e5f1, 0x1e5fa);
}

// The next numeric character at `place` or later; its size is 0 if there is none.
struct Digit {
  std::size_t place = 0;
  unsigned size = 0;
};
Digit next_digit(std::string_view text, std::size_t place) {
  while (place < text.size()) {
    const auto lead = static_cast<unsigned char>(text[place]);
    if (lead < 0x80U) {
      if (lead >= '0' && lead <= '9') return {place, 1};
      ++place;
      continue;
    }
    const CodePoint point = first_code_point(text.substr(place));
    if (is_numeric(point.value)) return {place, point.size};
    place += point.size;
  }
  return {text.size(), 0};
}

}  // namespace

Splitter::Splitter(const std::vector<SplitStep>& steps) {
  for (const auto& step : steps) {
    switch (step.kind) {
      case SplitStep::Kind::pattern:
        cuts_.push_back({Cut::Kind::pattern, Pattern(step.expression, step.where)});
        break;
      case SplitStep::Kind::digits:
        cuts_.push_back({Cut::Kind::digits, std::nullopt});
        break;
      case SplitStep::Kind::digit_runs:
        cuts_.push_back({Cut::Kind::digit_runs, std::nullopt});
        break;
      case SplitStep::Kind::space_signs:
        sign_ = step.sign;
        prefix_ = step.prefix;
        if (step.cut) cuts_.push_back({Cut::Kind::signs, std::nullopt});
        break;
      case SplitStep::Kind::bytes:
        byte_level_ = true;
        prefix_ = step.prefix;
        if (step.cut) cuts_.push_back({Cut::Kind::pattern, Pattern(kGpt2, step.where)});
        break;
    }
  }
}

std::string_view Splitter::change(std::string_view text, bool first, Scratch& scratch) const {
  auto& changed = scratch.text;
  if (!sign_.empty() && text.find(' ') != std::string_view::npos) {
    changed.clear();
    for (const char c : text) {
      if (c == ' ') {
        changed += sign_;
      } else {
        changed += c;
      }
    }
    text = changed;
  }
  const std::string& before = sign_.empty() ? space_ : sign_;
  const bool wanted = prefix_ == SplitStep::Prefix::always || (prefix_ == SplitStep::Prefix::first && first);
  if (!wanted || text.starts_with(before)) return text;
  if (text.data() != changed.data()) changed = text;
  changed.insert(0, before);
  return changed;
}

std::size_t Splitter::end_of_piece(const Cut& cut, std::string_view text, std::size_t from, Pattern::Match& match,
                                   Scratch& scratch) const {
  switch (cut.kind) {
    case Cut::Kind::signs:
      return std::min(text.find(sign_, from + (text.substr(from).starts_with(sign_) ? sign_.size() : 1)), text.size());
    case Cut::Kind::digits:
    case Cut::Kind::digit_runs: {
      Digit digit = next_digit(text, from);
      if (digit.place > from) return digit.place;
      if (cut.kind == Cut::Kind::digits) return from + digit.size;
      std::size_t end = from;
      for (; digit.size > 0 && digit.place == end; digit = next_digit(text, end)) end += digit.size;
      return end;
    }
    case Cut::Kind::pattern:
      if (match.end <= from) match = cut.pattern->find(text, from, scratch.match);
      return match.begin > from ? match.begin : match.end;
  }
  return text.size();
}

}  // namespace dropcycle
