#include "normalizer.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <cstdlib>
#include <memory>
#include <optional>

#include "dropcycle/core/error.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

constexpr std::uint32_t kCodePoints = 0x110000;

// Combining marks that came after Unicode 9: to the `tokenizers` library they are characters like any other.
struct Range {
  std::uint32_t first, last;
};
constexpr auto kLaterMarks = std::to_array<Range>(
    {{0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
     {0xa82c, 0xa82c},   {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
     {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
     {0x11930, 0x11930}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34},
     {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
     {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
     {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}});

bool is_later_mark(std::uint32_t point) {
  const auto range = std::upper_bound(kLaterMarks.begin(), kLaterMarks.end(), point,
                                      [](std::uint32_t p, const Range& r) { return p < r.first; });
  return range != kLaterMarks.begin() && point <= std::prev(range)->last;
}

// Appends the NFC of `text`.
void compose(std::string_view text, std::string& result) {
  utf8proc_uint8_t* composed = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &composed, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(composed, &std::free);
  require(size >= 0, "utf8proc can't compose {} bytes: {}", text.size(), size < 0 ? utf8proc_errmsg(size) : "");
  result.append(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(size));
}

// The characters that composition may change or join to the ones before; all others stay as they are, and nothing
// before them matters to what follows.
const std::bitset<kCodePoints>& changing_characters() {
  static const auto table = [] {
    auto made = std::make_unique<std::bitset<kCodePoints>>();
    std::array<utf8proc_int32_t, 8> parts{};
    for (std::uint32_t point = 0x300; point < kCodePoints; ++point) {
      if (point >= 0xac00 && point < 0xe000) continue;  // Hangul syllables, surrogates
      const auto* const property = utf8proc_get_property(static_cast<utf8proc_int32_t>(point));
      if (property->combining_class != 0) made->set(point);
      if (property->decomp_seqindex == UINT16_MAX) continue;
      int boundary = 0;
      const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(point), parts.data(), parts.size(),
                                                 UTF8PROC_DECOMPOSE, &boundary);
      if (count < 1 || (count == 1 && static_cast<std::uint32_t>(parts[0]) == point)) continue;
      if (count > 1) made->set(static_cast<std::size_t>(parts[static_cast<std::size_t>(count) - 1]));
      std::array<utf8proc_uint8_t, 4> bytes{};
      const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(point), bytes.data());
      const std::string_view text(reinterpret_cast<const char*>(bytes.data()), static_cast<std::size_t>(size));
      std::string composed;
      compose(text, composed);
      if (composed != text) made->set(point);
    }
    for (std::uint32_t vowel = 0x1161; vowel <= 0x1175; ++vowel) made->set(vowel);
    for (std::uint32_t tail = 0x11a8; tail <= 0x11c2; ++tail) made->set(tail);
    for (const Range& range : kLaterMarks) {
      for (std::uint32_t point = range.first; point <= range.last; ++point) made->reset(point);
    }
    return made;
  }();
  return *table;
}

// Only stretches that may change go through utf8proc: a character with all changing ones after it, and again where the
// next such pair follows at once.
bool apply_nfc(std::string_view text, std::string& result) {
  constexpr unsigned char kFirstLead = 0xcc;  // of U+0300
  if (std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= kFirstLead; })) {
    return false;
  }
  const auto& changing = changing_characters();
  std::size_t copied = 0, starter = 0, place = 0;  // `starter`: where the last character that doesn't change begins
  bool later_mark = false, changed = false;
  while (place < text.size()) {
    const CodePoint point = first_code_point(text.substr(place));
    if (!changing.test(point.value)) {
      starter = place;
      later_mark = is_later_mark(point.value);
      place += point.size;
      continue;
    }
    if (later_mark) starter = place;
    if (!changed) result.clear();
    changed = true;
    result += text.substr(copied, starter - copied);
    bool stretch = true;  // the last character changes
    std::size_t end = place + point.size;
    for (std::size_t next = end; next < text.size();) {
      const CodePoint follower = first_code_point(text.substr(next));
      const bool changes = changing.test(follower.value);
      if (!changes && (!stretch || is_later_mark(follower.value))) break;
      next += follower.size;
      stretch = changes;
      if (changes) end = next;
    }
    compose(text.substr(starter, end - starter), result);
    copied = starter = place = end;
    later_mark = true;  // what was composed is done with
  }
  if (changed) result += text.substr(copied);
  return changed;
}

bool replace(std::string_view text, const NormalizerStep& step, std::string& result) {
  std::size_t found = text.find(step.from);
  if (found == std::string_view::npos) return false;
  result.clear();
  while (found != std::string_view::npos) {
    (result += text.substr(0, found)) += step.to;
    text.remove_prefix(found + step.from.size());
    found = text.find(step.from);
  }
  result += text;
  return true;
}

}  // namespace

std::string_view Normalizer::apply(std::string_view text, std::string& result, std::string& scratch) const {
  for (const auto& step : steps_) {
    bool changed = false;
    if (step.kind == NormalizerStep::Kind::nfc) {
      changed = apply_nfc(text, scratch);
    } else if (step.kind == NormalizerStep::Kind::replace) {
      changed = replace(text, step, scratch);
    } else if (!text.empty()) {
      (scratch = step.to) += text;
      changed = true;
    }
    if (!changed) continue;
    std::swap(result, scratch);
    text = result;
  }
  return text;
}

}  // namespace dropcycle
