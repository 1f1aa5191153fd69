// Dropcycle's tokenizers for the Python programs that compare them with the `tokenizers` library.
//
//   tokenizer_probe ids TOKENIZER             texts from standard input, ids and decoded texts to standard output
//   tokenizer_probe time TOKENIZER SECONDS    texts from standard input; MB of text per second of processor time, and
//   ids in all tokenizer_probe write TOKENIZER FOLDER    write_huggingface()
//
// A text is its size in bytes (uint32) and the bytes; ids are their number (uint32) and the ids (int32).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "dropcycle/core/error.hpp"
#include "dropcycle/data/tokenizer.hpp"

using namespace dropcycle;

namespace {

std::vector<std::string_view> texts_of(const std::string& input) {
  std::vector<std::string_view> texts;
  for (std::size_t place = 0; place + 4 <= input.size();) {
    std::uint32_t size = 0;
    std::memcpy(&size, input.data() + place, sizeof size);
    texts.emplace_back(std::string_view(input).substr(place + 4, size));
    place += 4 + size;
  }
  return texts;
}

void write(const void* data, std::size_t count, std::size_t item_bytes) {
  const auto size = static_cast<std::uint32_t>(count);
  std::fwrite(&size, sizeof size, 1, stdout);
  std::fwrite(data, item_bytes, count, stdout);
}

void print_ids(const Tokenizer& tokenizer, const std::vector<std::string_view>& texts) {
  Encoder encoder(tokenizer);
  std::vector<std::int32_t> ids;
  for (const auto text : texts) {
    ids.clear();
    encoder.encode(text, ids);
    if (ids != tokenizer.encode(text)) {
      std::fprintf(stderr, "Encoder and Tokenizer give other ids for: %.*s\n", static_cast<int>(text.size()),
                   text.data());
      std::exit(1);
    }
    write(ids.data(), ids.size(), sizeof ids[0]);
    const std::string decoded = tokenizer.decode(ids);
    write(decoded.data(), decoded.size(), 1);
  }
}

void print_rate(const Tokenizer& tokenizer, const std::vector<std::string_view>& texts, double seconds) {
  Encoder encoder(tokenizer);
  std::vector<std::int32_t> ids;
  std::size_t bytes = 0, count = 0;
  const std::clock_t start = std::clock();
  double spent = 0;
  do {
    for (const auto text : texts) {
      ids.clear();
      encoder.encode(text, ids);
      bytes += text.size();
      count += ids.size();
    }
    spent = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  } while (spent < seconds);
  std::printf("%.3f %zu\n", static_cast<double>(bytes) / 1e6 / spent, count);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count < 3) fail(Status::usage, "tokenizer_probe ids|time|write TOKENIZER [SECONDS|FOLDER]");
    const std::string_view mode = arguments[1];
    const Tokenizer tokenizer(arguments[2]);
    if (mode == "write" && count == 4) {
      write_huggingface(tokenizer, arguments[3]);
      return 0;
    }
    const std::string input((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    if (mode == "time" && count == 4) {
      print_rate(tokenizer, texts_of(input), std::atof(arguments[3]));
    } else {
      print_ids(tokenizer, texts_of(input));
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.status());
  }
}
