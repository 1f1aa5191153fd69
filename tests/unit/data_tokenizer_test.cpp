#include "dropcycle/data/tokenizer.hpp"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <random>
#include <thread>

#include "data_text_fixture.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

std::vector<std::int32_t> sentencepiece_ids(const std::string& model, const std::string& text) {
  sentencepiece::SentencePieceProcessor processor;
  REQUIRE(processor.Load(model).ok());
  std::vector<int> ids;
  REQUIRE(processor.Encode(text, &ids).ok());
  return {ids.begin(), ids.end()};
}

// The corpus' own sentences, shuffled words and random characters of it: many ties and unknown characters.
std::vector<std::string> many_texts() {
  std::vector<std::string> texts = odd_texts();
  std::mt19937 random(7);
  const std::vector<std::string> parts = {"the ",  "を", "です",         "int ", "==", "-", " ",
                                          "  ",    "\n", "東",           "ab",   "a",  "😀", "。",
                                          "std::", "0",  "\xe2\x96\x81", "é",    "\t", "x"};
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (std::size_t n = random() % 60; n > 0; --n) text += parts[random() % parts.size()];
    texts.push_back(text);
  }
  texts.push_back(read_file(std::string(DROPCYCLE_SOURCE_DIR) + "/include/dropcycle/data/tokenizer.hpp"));
  return texts;
}

// What a unigram model gives a way to write a text.
double score(const sentencepiece::SentencePieceProcessor& model, const std::vector<std::int32_t>& ids) {
  double sum = 0;
  for (const std::int32_t id : ids) sum += static_cast<double>(model.GetScore(id));
  return sum;
}

// The same ids as SentencePiece. Of a unigram model also another way to write the text whose score is at least as high,
// where SentencePiece's own sums, which it rounds to float, hide the difference.
void check_ids(const Tokenizer& tokenizer, bool unigram, const std::string& text, int& others) {
  const auto ids = tokenizer.encode(text);
  const auto expected = sentencepiece_ids(tokenizer.path().string(), text);
  if (!unigram || ids == expected) {
    REQUIRE(ids == expected);
    return;
  }
  ++others;
  sentencepiece::SentencePieceProcessor model;
  REQUIRE(model.Load(tokenizer.path().string()).ok());
  const double ours = score(model, ids), theirs = score(model, expected);
  constexpr double kRounding = 6e-8;  // of a float, relative
  REQUIRE(ours >= theirs + kRounding * 1e-3 * theirs);
  REQUIRE(ours - theirs <= kRounding * -theirs * static_cast<double>(expected.size()));
  CHECK(model.DecodeIds(ids) == model.DecodeIds(expected));
}

void check_against_sentencepiece(const Tokenizer& tokenizer) {
  Encoder encoder(tokenizer);
  const bool unigram = contains(tokenizer.describe(), "our own unigram");
  int others = 0;
  for (int pass = 0; pass < 2; ++pass) {  // the second from the encoder's memory
    for (const std::string& text : many_texts()) {
      CAPTURE(text);
      check_ids(tokenizer, unigram, text, others);
      const auto expected = tokenizer.encode(text);
      std::vector<std::int32_t> ids = {42};
      encoder.encode(text, ids);
      REQUIRE(ids.size() == expected.size() + 1);
      REQUIRE(std::equal(expected.begin(), expected.end(), ids.begin() + 1));
    }
  }
  CHECK(others <= 64);  // of 642: those with runs of equal characters
}

}  // namespace

TEST_CASE("unigram and BPE give SentencePiece's ids, and the text back") {
  const Folder folder;
  for (const std::string type : {"unigram", "bpe"}) {
    CAPTURE(type);
    const Tokenizer tokenizer = small_tokenizer(folder, type);
    CHECK(tokenizer.vocab_size() == 700);
    CHECK(tokenizer.unk_id() == 0);
    CHECK(tokenizer.bos_id() == 1);
    CHECK(tokenizer.eos_id() == 2);
    CHECK(tokenizer.pad_id() == -1);
    CHECK_FALSE(contains(tokenizer.describe(), "by SentencePiece"));  // it is our own path that is tested here
    check_against_sentencepiece(tokenizer);
    for (const std::string& text : odd_texts()) {
      CAPTURE(text);
      if (contains(text, "\xe2\x96\x81")) continue;  // SentencePiece's own sign for a space comes back as one
      CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
    }
  }
}

TEST_CASE("a model of another kind, one that changes characters, goes through SentencePiece") {
  const Folder folder;
  write_corpus(folder / "corpus.txt");
  const std::string flags = "--input=" + (folder / "corpus.txt") + " --model_prefix=" + (folder / "nfkc") +
                            " --vocab_size=400 --character_coverage=0.98 --pad_id=3 --hard_vocab_limit=false"
                            " --user_defined_symbols=<sep>,★ --minloglevel=2";
  REQUIRE(sentencepiece::SentencePieceTrainer::Train(flags).ok());
  const Tokenizer tokenizer(folder / "nfkc.model");
  CHECK(contains(tokenizer.describe(), "by SentencePiece"));
  CHECK(tokenizer.pad_id() == 3);
  check_against_sentencepiece(tokenizer);
}

TEST_CASE("user-defined symbols and models without a leading space are SentencePiece's too") {
  const Folder folder;
  write_corpus(folder / "corpus.txt");
  for (const std::string type : {"unigram", "bpe"}) {
    const std::string flags = "--input=" + (folder / "corpus.txt") + " --model_prefix=" + (folder / type) +
                              " --vocab_size=600 --model_type=" + type +
                              " --byte_fallback=true --normalization_rule_name=identity --add_dummy_prefix=false"
                              " --remove_extra_whitespaces=false --hard_vocab_limit=false"
                              " --user_defined_symbols=std::,です。,--,the --minloglevel=2";
    REQUIRE(sentencepiece::SentencePieceTrainer::Train(flags).ok());
    check_against_sentencepiece(Tokenizer(folder / (type + ".model")));
  }
}

TEST_CASE("text that isn't UTF-8 is encoded all the same, as SentencePiece does") {
  const Folder folder;
  const Tokenizer tokenizer = small_tokenizer(folder);
  for (const std::string text : {"ab\xff\xfe", "\xe3\x81", "\xed\xa0\x80x", "\xc0\x80"}) {
    CHECK(tokenizer.encode(text) == sentencepiece_ids(tokenizer.path().string(), text));
  }
}

TEST_CASE("encoding is thread safe") {
  const Folder folder;
  const Tokenizer tokenizer = small_tokenizer(folder, "bpe");
  const auto expected = tokenizer.encode(odd_texts()[8]);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) wrong[t] += tokenizer.encode(odd_texts()[8]) != expected ? 1 : 0;
    });
  }
  for (auto& thread : threads) thread.join();
  for (const int count : wrong) CHECK(count == 0);
}

TEST_CASE("the digest names the model, and training again gives the same one") {
  const Folder folder, other;
  const Tokenizer a = small_tokenizer(folder), b = small_tokenizer(other), c = small_tokenizer(other, "unigram", 690);
  CHECK(a.digest() == b.digest());
  CHECK(a.digest() != c.digest());
  CHECK(a.digest().size() == 32);
}

TEST_CASE("what isn't a model, ids outside the vocabulary and impossible training are refused") {
  const Folder folder;
  write_file(folder / "text.model", "no model");
  CHECK(contains(error_of(Status::input, [&] { Tokenizer tokenizer(folder / "text.model"); }), "text.model"));
  write_file(folder / "empty.model", "");
  error_of(Status::input, [&] { Tokenizer tokenizer(folder / "empty.model"); });
  error_of(Status::input, [&] { Tokenizer tokenizer(folder / "none.model"); });
  const Tokenizer tokenizer = small_tokenizer(folder);
  const std::string whole = read_file(folder / "unigram.model");
  write_file(folder / "cut.model", whole.substr(0, whole.size() / 2));
  error_of(Status::input, [&] { Tokenizer cut(folder / "cut.model"); });
  const std::vector<std::int32_t> high = {700}, low = {-1};
  error_of(Status::input, [&] { (void)tokenizer.decode(high); });
  error_of(Status::input, [&] { (void)tokenizer.decode(low); });
  TokenizerOptions options;
  options.output = folder / "x.model";
  options.vocab_size = 100000;
  CHECK(contains(error_of(Status::usage, [&] { train_tokenizer(options, {folder / "corpus.jsonl"}); }), "100000"));
  options.type = "word2vec";
  error_of(Status::usage, [&] { train_tokenizer(options, {folder / "corpus.jsonl"}); });
  options.type = "unigram";
  write_file(folder / "empty.jsonl", "\n\n");
  error_of(Status::input, [&] { train_tokenizer(options, {folder / "empty.jsonl"}); });
}
