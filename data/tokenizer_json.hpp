// What a tokenizer.json says, as far as Dropcycle follows it; everything else is refused by name.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "added_tokens.hpp"
#include "bpe.hpp"
#include "normalizer.hpp"
#include "splitter.hpp"
#include "text_model.hpp"
#include "token_decoder.hpp"
#include "vocabulary.hpp"

namespace dropcycle {

struct TokenizerJson {
  bool unigram = false;  // else BPE
  Vocabulary pieces;     // of the model
  Vocabulary all;        // with the added tokens
  BpeRules bpe;
  std::vector<double> scores;  // unigram: of each piece
  std::int32_t unknown = -1;
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;
  std::vector<SplitStep> splits;
  std::vector<DecoderStep> decoder;
  TextModel::SpecialIds special;
  bool split_special = false;  // special tokens in a text are text
};

// Throws Error{input} naming `path` and the place within the JSON.
TokenizerJson parse_tokenizer_json(const std::filesystem::path& path, const std::string& bytes);

}  // namespace dropcycle
