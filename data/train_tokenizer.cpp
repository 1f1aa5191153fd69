#include <fmt/format.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <unordered_map>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/log.hpp"
#include "dropcycle/data/shard.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "text_extractor.hpp"
#include "text_reader.hpp"

namespace dropcycle {
namespace {

constexpr std::uint64_t kMaxDocumentBytes = 8ULL << 20U;
constexpr std::uint64_t kUsualCompression = 4;  // how much bigger text is than its compressed file, to share max_bytes

// The inputs' documents, cut into lines that SentencePiece doesn't drop.
class Sentences : public sentencepiece::SentenceIterator {
 public:
  Sentences(const TokenizerOptions& options, std::vector<std::filesystem::path> files)
      : options_(options), files_(std::move(files)), extractor_(options.text_key) {
    Next();
  }
  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }
  std::uint64_t text_bytes() const { return total_bytes_; }

  void Next() override {
    do {
      if (rest_.empty() && !next_document()) {
        done_ = true;
        return;
      }
      take_line();
    } while (line_.empty());
  }

 private:
  // The next line of the document, at most max_line_bytes of it and never half a character.
  void take_line() {
    std::size_t size = std::min(rest_.find('\n'), rest_.size());
    const bool whole_line = size <= static_cast<std::size_t>(options_.max_line_bytes);
    if (!whole_line) {
      size = static_cast<std::size_t>(options_.max_line_bytes);
      while (size > 1 && (static_cast<unsigned char>(rest_[size]) & 0xc0U) == 0x80U) --size;
    }
    line_.assign(rest_.substr(0, size));
    rest_.remove_prefix(std::min(rest_.size(), size + (whole_line ? 1 : 0)));
  }

  // Takes the next document that is in its file's share of max_bytes.
  bool next_document() {
    for (;;) {
      if (!reader_ && !open_next_file()) return false;
      buffer_.clear();
      Line line;
      if (!reader_->next(buffer_, line)) {
        reader_.reset();
        continue;
      }
      const std::size_t size = buffer_.size();
      seen_ += size;
      if (line.too_long || static_cast<double>(taken_) > share_ * static_cast<double>(seen_)) continue;
      buffer_.append(TextExtractor::kPadding, '\0');
      const std::string_view text(buffer_.data(), size);
      const ExtractedText found = json_ ? extractor_.from_json(text) : TextExtractor::from_text(text);
      if (found.fault != LineFault::none || found.text.empty()) continue;
      taken_ += found.text.size();
      total_bytes_ += found.text.size();
      rest_ = found.text;
      return true;
    }
  }

  bool open_next_file() {
    if (next_file_ == files_.size()) return false;
    const auto& path = files_[next_file_++];
    reader_.emplace(path, kMaxDocumentBytes, false);
    json_ = is_json_lines(path);
    seen_ = taken_ = 0;
    share_ = 1;
    if (options_.max_bytes > 0) {
      const bool compressed = path.extension() == ".gz" || path.extension() == ".zst";
      const std::uint64_t size = std::filesystem::file_size(path) * (compressed ? kUsualCompression : 1);
      const double budget = static_cast<double>(options_.max_bytes) / static_cast<double>(files_.size());
      share_ = std::min(1.0, budget / static_cast<double>(std::max<std::uint64_t>(size, 1)));
    }
    return true;
  }

  const TokenizerOptions& options_;
  std::vector<std::filesystem::path> files_;
  TextExtractor extractor_;
  std::size_t next_file_ = 0;
  std::optional<LineReader> reader_;
  bool json_ = false, done_ = false;
  double share_ = 1;
  std::uint64_t seen_ = 0, taken_ = 0, total_bytes_ = 0;
  std::string buffer_, line_;
  std::string_view rest_;  // of the document, in buffer_ or in the extractor
};

std::unordered_map<std::string, std::string> trainer_flags(const TokenizerOptions& options) {
  return {{"model_type", options.type},
          {"vocab_size", std::to_string(options.vocab_size)},
          {"num_threads", std::to_string(options.threads)},
          {"input_sentence_size", std::to_string(options.sample_lines)},
          {"shuffle_input_sentence", "true"},
          {"character_coverage", fmt::format("{}", options.character_coverage)},
          {"max_sentence_length", std::to_string(options.max_line_bytes)},
          {"byte_fallback", "true"},
          {"normalization_rule_name", "identity"},
          {"remove_extra_whitespaces", "false"},
          {"allow_whitespace_only_pieces", "true"},
          {"split_digits", "true"},
          {"unk_id", "0"},
          {"bos_id", "1"},
          {"eos_id", "2"},
          {"pad_id", "-1"},
          {"minloglevel", "1"}};
}

}  // namespace

Tokenizer train_tokenizer(const TokenizerOptions& options, const std::vector<std::string>& inputs) {
  if (options.type != "unigram" && options.type != "bpe") {
    fail(Status::usage, "--type {}: expected unigram or bpe", options.type);
  }
  if (options.threads < 1 || options.max_line_bytes < 4 || options.sample_lines < 0) {
    fail(Status::usage, "--threads {} must be at least 1, --max-line-bytes {} at least 4, --sample-lines {} at least 0",
         options.threads, options.max_line_bytes, options.sample_lines);
  }
  Sentences sentences(options, expand_globs(inputs));
  if (sentences.done()) fail(Status::input, "no text in the inputs to train a tokenizer on: check them and --text-key");
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(trainer_flags(options), &sentences, &model);
  if (!status.ok()) {
    std::string reason = status.message();
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    fail(Status::usage, "SentencePiece can't train {} pieces on {} bytes of text: {}", options.vocab_size,
         sentences.text_bytes(), reason);
  }
  log_info("tokenizer trained on {:.1f} MB of text", static_cast<double>(sentences.text_bytes()) / 1e6);
  write_file(options.output, model);
  return Tokenizer(options.output);
}

}  // namespace dropcycle
