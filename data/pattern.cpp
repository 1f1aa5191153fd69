#include "pattern.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "dropcycle/core/error.hpp"
#include "utf8.hpp"

namespace dropcycle {
namespace {

// The characters that got their category after Unicode 14, which Debian's PCRE2 10.42 has, and up to 16.
struct LaterCharacters {
  std::string_view property, ranges;
};
constexpr std::array<LaterCharacters, 8> kLater = {{
    {"L",
     "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"
     "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"
     "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}"
     "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"
     "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}\\x{18cff}"
     "\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}"
     "\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
    {"Lu", "\\x{1c89}\\x{a7cb}-\\x{a7cc}\\x{a7da}\\x{a7dc}\\x{10d50}-\\x{10d65}"},
    {"Ll", "\\x{1c8a}\\x{a7cd}\\x{a7db}\\x{10d70}-\\x{10d85}\\x{1df25}-\\x{1df2a}"},
    {"Lm", "\\x{10d4e}\\x{10d6f}\\x{16d40}-\\x{16d42}\\x{16d6b}-\\x{16d6c}\\x{1e030}-\\x{1e06d}\\x{1e4eb}"},
    {"Lo",
     "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d4d}\\x{10d4f}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"
     "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}"
     "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"
     "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d43}-\\x{16d6a}\\x{18cff}"
     "\\x{1b132}\\x{1b155}\\x{1e4d0}-\\x{1e4ea}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"
     "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
    {"M",
     "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}"
     "\\x{113b8}-\\x{113c0}\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}\\x{113d2}"
     "\\x{113e1}-\\x{113e2}\\x{11f00}-\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}\\x{11f3e}-\\x{11f42}"
     "\\x{11f5a}\\x{13440}\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}"
     "\\x{1e5ee}-\\x{1e5ef}"},
    {"N",
     "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
     "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"
     "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"},
    {"Nd",
     "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
     "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}"
     "\\x{1e5f1}-\\x{1e5fa}"},
}};
// White_Space; PCRE2's own \s has U+180E as well.
constexpr std::string_view kSpaces =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

// Rewrites an expression for PCRE2 and refuses what means something else there.
class Translation {
 public:
  Translation(std::string_view expression, const std::string& where) : rest_(expression), where_(where) {
    while (!rest_.empty()) step();
    if (in_class_) refuse("a class without its end");
  }
  const std::string& text() const { return out_; }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(Status::input, "{}: the pattern has {}, which Dropcycle doesn't read: give a tokenizer with another pattern",
         where_, what);
  }
  bool take(std::string_view prefix) {
    if (!rest_.starts_with(prefix)) return false;
    rest_.remove_prefix(prefix.size());
    return true;
  }
  void step() {
    if (take("\\")) return escape();
    if (in_class_) return class_character();
    for (const std::string_view anchor : {"^", "$", "."}) {
      if (rest_.starts_with(anchor)) refuse(anchor);
    }
    if (take("[")) {
      out_ += take("^") ? "[^" : "[";
      in_class_ = true;
      if (rest_.starts_with("]")) refuse("an empty class");
      return;
    }
    if (rest_.starts_with("(?")) return group();
    if (rest_.starts_with("{")) return repetition();
    if (rest_.starts_with("(*")) refuse("(*");
    copy(1);
  }
  void copy(std::size_t count) {
    out_ += rest_.substr(0, count);
    rest_.remove_prefix(count);
  }
  void class_character() {
    if (rest_.starts_with("[")) refuse("a class within a class");
    if (rest_.starts_with("&&")) refuse("&&");
    in_class_ = !rest_.starts_with("]");
    copy(1);
  }
  void escape() {
    if (rest_.empty()) refuse("a backslash at its end");
    const char kind = rest_.front();
    if (kind == 'p' || kind == 'P') return property();
    rest_.remove_prefix(1);
    if (kind == 's') {
      add_class("", kSpaces);
    } else if (kind == 'S') {
      if (in_class_) refuse("\\S within a class");
      add_class("^", kSpaces);
    } else if (kind == 'r' || kind == 'n' || kind == 't' || std::ispunct(static_cast<unsigned char>(kind)) != 0) {
      out_ += '\\';
      out_ += kind;
    } else {
      refuse(std::string("\\") + kind);
    }
  }
  void property() {
    const bool negated = rest_.front() == 'P';
    const std::size_t end = rest_.find('}');
    if (rest_.size() < 2 || rest_[1] != '{' || end == std::string_view::npos) refuse("\\p without {}");
    const std::string_view name = rest_.substr(2, end - 2);
    const auto later = std::find_if(kLater.begin(), kLater.end(), [&](const auto& l) { return l.property == name; });
    if ((later == kLater.end() && name != "Lt") || (negated && in_class_))
      refuse("\\" + std::string(rest_.substr(0, end + 1)));
    rest_.remove_prefix(end + 1);
    const std::string more(later == kLater.end() ? "" : later->ranges);
    add_class(negated ? "^" : "", "\\p{" + std::string(name) + "}" + more);
  }
  void add_class(std::string_view negation, std::string_view members) {
    if (in_class_) {
      out_ += members;
    } else {
      ((((out_ += '[') += negation) += members) += ']');
    }
  }
  void group() {
    if (take("(?i:")) {
      const std::size_t end = rest_.find(')');
      const std::string_view inner = rest_.substr(0, end);
      const bool plain = end != std::string_view::npos && std::all_of(inner.begin(), inner.end(), [](char c) {
                           return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '\'' || c == '|';
                         });
      if (!plain) refuse("(?i: ) around more than plain ASCII");
      ((out_ += "(?i:") += inner) += ')';
      rest_.remove_prefix(end + 1);
      return;
    }
    for (const std::string_view kind : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (take(kind)) {
        out_ += kind;
        return;
      }
    }
    refuse(rest_.substr(0, 3));
  }
  // {n}, {n,} or {n,m}, greedy or not; a + after it is another repetition in one syntax and possession in the other.
  void repetition() {
    const std::size_t end = rest_.find('}');
    const std::string_view inner = rest_.substr(1, std::min(end, rest_.size()) - 1);
    const bool fits = end != std::string_view::npos && !inner.empty() && inner.front() != ',' &&
                      inner.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!fits || rest_.substr(end + 1).starts_with('+')) refuse("a { that isn't a plain repetition");
    copy(end + 1);
  }

  std::string_view rest_;
  const std::string& where_;
  std::string out_;
  bool in_class_ = false;
};

template <class T, void (*free_it)(T*)>
struct Free {
  void operator()(T* thing) const { free_it(thing); }
};
using Code = std::unique_ptr<pcre2_code, Free<pcre2_code, pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Free<pcre2_match_data, pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Free<pcre2_match_context, pcre2_match_context_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Free<pcre2_compile_context, pcre2_compile_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack, pcre2_jit_stack_free>>;

Code compile(std::string_view expression, const std::string& where) {
  const Translation translation(expression, where);
  const CompileContext context(pcre2_compile_context_create(nullptr));
  require(context != nullptr, "no memory for a pattern");
  int error = 0;
  PCRE2_SIZE place = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translation.text().data()), translation.text().size(),
                          PCRE2_UTF | PCRE2_UCP, &error, &place, context.get()));
  if (!code) {
    std::array<PCRE2_UCHAR, 200> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    fail(Status::input, "{}: PCRE2 can't read the pattern: {}", where, reinterpret_cast<const char*>(message.data()));
  }
  std::uint32_t matches_empty = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) fail(Status::input, "{}: the pattern matches nothing at all: give another tokenizer", where);
  return code;
}

}  // namespace

struct Pattern::Scratch::State {
  MatchData data{pcre2_match_data_create(1, nullptr)};
  MatchContext context{pcre2_match_context_create(nullptr)};
  JitStack stack{pcre2_jit_stack_create(std::size_t{32} << 10U, std::size_t{16} << 20U, nullptr)};
};

Pattern::Scratch::Scratch() : state_(std::make_unique<State>()) {
  require(state_->data && state_->context, "no memory to search for a pattern");
  pcre2_jit_stack_assign(state_->context.get(), nullptr, state_->stack.get());
}
Pattern::Scratch::~Scratch() = default;
Pattern::Scratch::Scratch(Scratch&&) noexcept = default;
Pattern::Scratch& Pattern::Scratch::operator=(Scratch&&) noexcept = default;

struct Pattern::State {
  Code code;
  bool jit = false;  // not on every processor; slower without
};

Pattern::Pattern(std::string_view expression, const std::string& where)
    : state_(std::make_unique<State>(State{compile(expression, where)})) {
  state_->jit = pcre2_jit_compile(state_->code.get(), PCRE2_JIT_COMPLETE) == 0;
}
Pattern::~Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;

Pattern::Match Pattern::find(std::string_view text, std::size_t from, Scratch& scratch) const {
  auto& state = *scratch.state_;
  const auto* const subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const int found = state_->jit ? pcre2_jit_match(state_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                                  state.data.get(), state.context.get())
                                : pcre2_match(state_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                              state.data.get(), state.context.get());
  if (found == PCRE2_ERROR_NOMATCH) return {text.size(), text.size()};
  if (found < 0) {
    fail(Status::input, "a tokenizer's pattern needs too much work on a text of {} bytes (PCRE2 error {})", text.size(),
         found);
  }
  const PCRE2_SIZE* const place = pcre2_get_ovector_pointer(state.data.get());
  return {place[0], place[1]};
}

}  // namespace dropcycle
