// Text in several scripts and tokenizers trained on it.
#pragma once

#include <string>
#include <vector>

#include "data_fixture.hpp"
#include "dropcycle/data/tokenizer.hpp"

namespace dropcycle::testing {

inline const std::vector<std::string>& odd_texts() {
  static const std::vector<std::string> texts = {
      "",
      " ",
      "   ",
      "\n",
      "\n\n\t x \n",
      "Hello world, hello again.",
      "  two leading and trailing spaces  ",
      "日本語の文章です。東京都に住んでいます。",
      "mixed 日本語 and English、そして code: for(i=0;i<10;++i)",
      "emoji 😀👩‍👩‍👧 and flags 🇯🇵",
      "中文文本，没有空格。한국어 문장도 있습니다.",
      "----------------------------------------========",
      "                                    deep indent",
      "\xe2\x96\x81literal block\xe2\x96\x81",
      "1234567890 3.14159",
      "tab\tseparated\tvalues\r\n",
      std::string("nul\0inside", 10),
      std::string(500, 'a'),
      "\xf0\x90\x8d\x88 rare plane, e\xcc\x81 combining",
      "<s> </s> <unk> <0x0A>",
  };
  return texts;
}

// A JSONL file of this project's own headers and some sentences.
inline void write_corpus(const std::string& path) {
  std::string out;
  const auto add = [&](const std::string& text) {
    out += "{\"text\": \"";
    for (const char c : text) {
      if (c == '"' || c == '\\') out += '\\';
      if (c == '\n') {
        out += "\\n";
      } else if (static_cast<unsigned char>(c) >= 0x20) {
        out += c;
      }
    }
    out += "\"}\n";
  };
  for (const char* file :
       {"core/random.hpp", "core/file.hpp", "data/dataset.hpp", "data/shard.hpp", "core/tensor.hpp"}) {
    add(read_file(std::string(DROPCYCLE_SOURCE_DIR) + "/include/dropcycle/" + file));
  }
  for (int i = 0; i < 20; ++i) {
    for (const auto& text : odd_texts()) add(text + (i % 3 == 0 ? "です。" : " and more"));
  }
  write_file(path, out);
}

inline Tokenizer small_tokenizer(const Folder& folder, const std::string& type = "unigram", std::int64_t vocab = 700) {
  write_corpus(folder / "corpus.jsonl");
  TokenizerOptions options;
  options.output = folder / (type + ".model");
  options.type = type;
  options.vocab_size = vocab;
  return train_tokenizer(options, {folder / "corpus.jsonl"});
}

}  // namespace dropcycle::testing
