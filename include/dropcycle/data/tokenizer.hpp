// Tokenizers: text to token ids and back, over SentencePiece. Any SentencePiece model works, with the control ids that
// it has.
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
  // Reads a SentencePiece model file. Throws Error{input} naming the file if it isn't one.
  explicit Tokenizer(const std::filesystem::path& model);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // The ids of `text` without begin or end ids. Thread safe. Bytes that aren't UTF-8 become U+FFFD.
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
  // Digest of the model file: shards and checkpoints name their tokenizer by it.
  const std::string& digest() const;
  const std::filesystem::path& path() const;
  // One line per property, for people.
  std::string describe() const;

 private:
  friend class Encoder;
  struct State;
  std::unique_ptr<State> state_;
};

// The same ids as Tokenizer::encode and as SentencePiece itself, quicker on much text; one per thread.
//
// Where the model changes no characters (identity normalisation with byte fallback: Llama's and our own models), a
// unigram model's best path is searched by our own code, which keeps SentencePiece's rules and rounding; under BPE a
// text is cut at every place that no piece of the vocabulary spans (merges never cross such a place), and the ids of
// short parts are remembered. Other models go through SentencePiece.
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
