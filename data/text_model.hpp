// What stands behind Tokenizer and Encoder: one way to turn text into ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dropcycle {

class TextModel {
 public:
  // What an encoding needs besides the text, one per thread.
  struct Scratch {
    virtual ~Scratch() = default;
  };
  struct SpecialIds {  // -1 where there is none
    std::int32_t bos = -1, eos = -1, unk = -1, pad = -1;
  };

  virtual ~TextModel() = default;
  // `remember`: keep the ids of short parts, 4 MiB, which pays for itself on much text.
  virtual std::unique_ptr<Scratch> make_scratch(bool remember) const = 0;
  // Appends the ids of `text`.
  virtual void encode(std::string_view text, Scratch& scratch, std::vector<std::int32_t>& ids) const = 0;
  // Ids are within the vocabulary.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;
  virtual std::int64_t vocab_size() const = 0;
  virtual std::string piece(std::int32_t id) const = 0;
  virtual SpecialIds special_ids() const = 0;
  // Lines "name           value" after the ones that all tokenizers have.
  virtual std::string describe() const = 0;
};

// `bytes`: of a .model file. Throws Error{input} naming `path`.
std::unique_ptr<TextModel> load_sentencepiece(const std::filesystem::path& path, std::string bytes);
// `bytes`: of a tokenizer.json; begin and end ids come from the files beside it. Throws Error{input} naming `path`.
std::unique_ptr<TextModel> load_tokenizer_json(const std::filesystem::path& path, std::string bytes);

}  // namespace dropcycle
