// Split patterns of tokenizer.json: regular expressions as the `tokenizers` library reads them (Oniguruma, Ruby's
// syntax, Unicode 16), run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace dropcycle {

class Pattern {
 public:
  // What a search needs besides the text, one per thread.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(Scratch&&) noexcept;
    Scratch& operator=(Scratch&&) noexcept;

   private:
    friend class Pattern;
    struct State;
    std::unique_ptr<State> state_;
  };
  struct Match {
    std::size_t begin = 0, end = 0;  // equal: there is none
  };

  // Throws Error{input} beginning with `where` for what PCRE2 can't compile, what may match nothing at all, and what
  // the two libraries understand differently: of escapes only \r \n \t \s \S and \p{...} of letters, marks and
  // numbers are taken, no anchors, no dot, no nested classes, and (?i: ) only around plain ASCII.
  Pattern(std::string_view expression, const std::string& where);
  ~Pattern();
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;

  // The first match that begins at `from` or later. `text` is valid UTF-8.
  Match find(std::string_view text, std::size_t from, Scratch& scratch) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle
