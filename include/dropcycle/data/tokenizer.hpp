// Tokenizers: text to token ids and back, from SentencePiece models and from tokenizer.json files of Hugging Face.
//
// Any SentencePiece model works, with the control ids that it has. Of tokenizer.json: byte-level BPE (GPT-2, Llama 3,
// SmolLM2, Qwen2 and relatives), BPE of characters with byte fallback (Llama 2, Mistral) and Unigram with byte
// fallback; normalizers NFC, Prepend and Replace; pre-tokenizers ByteLevel, Digits, Metaspace and Split by a pattern;
// added tokens. The ids are those of the `tokenizers` library with add_special_tokens=False. What isn't followed is
// refused by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dropcycle {

class Tokenizer {
 public:
  // Reads a SentencePiece .model file, a tokenizer.json, or a folder that holds either (tokenizer.json is preferred).
  // Begin, end, unknown and padding ids of a tokenizer.json come from the files beside it, the first that names them:
  // tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json.
  // Throws Error{input} naming the file, and the place in it for what a tokenizer.json has and Dropcycle doesn't
  // follow.
  explicit Tokenizer(const std::filesystem::path& path);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // The ids of `text` without begin or end ids. Thread safe. Bytes that aren't UTF-8 become U+FFFD. Special tokens in
  // a text ("<s>") are ordinary text to a SentencePiece model, and become their ids under a tokenizer.json, unless
  // tokenizer_config.json has split_special_tokens.
  std::vector<std::int32_t> encode(std::string_view text) const;
  // The text of `ids`; control ids (begin, end) give nothing. Throws Error{input} for an id outside the vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;

  std::int64_t vocab_size() const;
  // -1 where the model has no such id.
  std::int32_t bos_id() const;
  std::int32_t eos_id() const;
  std::int32_t unk_id() const;
  std::int32_t pad_id() const;
  std::string piece(std::int32_t id) const;
  // Digest of the file at path(): shards and checkpoints name their tokenizer by it.
  const std::string& digest() const;
  // The file that was read.
  const std::filesystem::path& path() const;
  bool is_sentencepiece() const;  // else a tokenizer.json
  // One line per property, for people.
  std::string describe() const;

 private:
  friend class Encoder;
  struct State;
  std::unique_ptr<State> state_;
};

// The same ids as Tokenizer::encode, quicker on much text; one per thread.
//
// Of a tokenizer.json the ids of short parts are remembered. Where a SentencePiece model changes no characters
// (identity normalisation with byte fallback: Llama's and our own models), a unigram model's best path is searched by
// our own code, in double where SentencePiece itself rounds to float (two ways to write a word whose scores are equal
// to within that rounding may come out otherwise: about 2 pieces in 1,000); under BPE a text is cut at every place that
// no piece of the vocabulary spans (merges never cross such a place), and the ids of short parts are remembered. Other
// models go through SentencePiece.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer);  // `tokenizer` must live longer
  ~Encoder();
  Encoder(Encoder&&) noexcept;
  // Appends the ids of `text` to `ids`.
  void encode(std::string_view text, std::vector<std::int32_t>& ids);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Copies the files of a tokenizer into `folder`: what is read from there is the same tokenizer with the same digest. A
// tokenizer.json goes with the files beside it; tokenizer_config.json then names begin, end, unknown and padding tokens
// even where they came from another file. Throws Error{input} or Error{storage}.
void copy_tokenizer(const Tokenizer& tokenizer, const std::filesystem::path& folder);

// Writes what transformers' AutoTokenizer loads and gives the same ids with. A tokenizer.json is copied as above. Of a
// SentencePiece model: tokenizer.json, tokenizer_config.json, special_tokens_map.json and the model file itself; it has
// to be a unigram or BPE model with byte fallback that changes no characters (Llama's, Mistral's and our own), others
// are refused by name. Throws Error{input} or Error{storage}.
void write_huggingface(const Tokenizer& tokenizer, const std::filesystem::path& folder);

struct TokenizerOptions {
  std::filesystem::path output;        // the model file
  std::string type = "unigram";        // unigram or bpe
  std::int64_t vocab_size = 16384;     // pieces, the 256 byte pieces and control ids among them
  int threads = 4;                     // not taken from the machine: rounding, so the model, depends on it a little
  std::int64_t sample_lines = 0;       // lines of text to train on, drawn at random; 0: all
  std::int64_t max_line_bytes = 8192;  // longer lines are cut (SentencePiece would drop them silently)
  double character_coverage = 0.9995;  // share of the text's characters that get pieces; others become bytes
  std::string text_key = "text";       // of JSONL inputs
  std::uint64_t max_bytes = 0;         // text taken in all, as much of each input and spread over it; 0: everything
};

// Trains a model: byte fallback (nothing is unknown), identity normalisation (decode(encode(x)) is x), digits one by
// one, ids unk 0, bos 1, eos 2, no pad. Inputs as in preprocess(): files or globs of JSONL or text, .gz and .zst too.
// Documents that aren't whole JSON or UTF-8 are passed over. Throws Error{input}, Error{usage} or Error{storage}.
Tokenizer train_tokenizer(const TokenizerOptions& options, const std::vector<std::string>& inputs);

}  // namespace dropcycle
