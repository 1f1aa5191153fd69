#include "dropcycle/data/preprocess.hpp"

#include <zlib.h>
#include <zstd.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "data_text_fixture.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

std::string gzip(const std::string& text) {
  z_stream stream{};
  REQUIRE(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(compressBound(text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

// The documents of all shards, decoded, without their end ids.
std::vector<std::string> documents_of(const PreprocessReport& report, const Tokenizer& tokenizer) {
  std::vector<std::string> documents;
  for (const auto& path : report.shards) {
    const TokenShard shard(path);
    CHECK(shard.info().tokenizer_digest == tokenizer.digest());
    for (std::uint64_t d = 0; d < shard.info().documents; ++d) {
      std::vector<std::int32_t> ids(shard.document_offset(d + 1) - shard.document_offset(d));
      shard.read(shard.document_offset(d), ids);
      if (!ids.empty()) {
        CHECK(ids.back() == tokenizer.eos_id());
        ids.pop_back();
      }
      documents.push_back(tokenizer.decode(ids));
    }
  }
  return documents;
}

std::vector<nlohmann::json> quarantine_of(const std::string& path) {
  std::vector<nlohmann::json> entries;
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);) entries.push_back(nlohmann::json::parse(line));
  return entries;
}

PreprocessOptions options_for(const Folder& folder, const Tokenizer& tokenizer, const std::string& input) {
  PreprocessOptions options;
  options.inputs = {folder / input};
  options.tokenizer = tokenizer.path();
  options.output = folder / "out/shard";
  options.overwrite = true;
  options.workers = 2;
  return options;
}

}  // namespace

TEST_CASE("JSON lines, plain and compressed, give the same shards whatever the number of workers") {
  const Folder folder;
  const Tokenizer tokenizer = small_tokenizer(folder);
  std::string lines;
  std::vector<std::string> expected;
  for (int i = 0; i < 400; ++i) {
    for (const auto& text : odd_texts()) {
      if (contains(text, "\xe2\x96\x81")) continue;
      lines += nlohmann::json({{"id", i}, {"text", text}}).dump() + (i % 2 == 0 ? "\n" : "\r\n");
      if (i % 50 == 0) lines += "\n  \n";
      expected.push_back(text);
    }
  }
  write_file(folder / "a.jsonl", lines);
  write_file(folder / "a.jsonl.gz", gzip(lines.substr(0, lines.size() / 2)) + gzip(lines.substr(lines.size() / 2)));
  write_file(folder / "a.json.zst", zstd(lines));
  std::string bytes;
  for (const char* input : {"a.jsonl", "a.jsonl.gz", "a.json.zst"}) {
    for (const int workers : {1, 2, 5}) {
      CAPTURE(input);
      CAPTURE(workers);
      PreprocessOptions options = options_for(folder, tokenizer, input);
      options.workers = workers;
      const PreprocessReport report = preprocess(options);
      REQUIRE(report.shards.size() == 1);
      CHECK(report.bad() == 0);
      CHECK(report.documents == expected.size());
      const std::string got = read_file(report.shards[0]);
      if (bytes.empty()) {
        bytes = got;
        CHECK(documents_of(report, tokenizer) == expected);
      }
      CHECK(got == bytes);
      CHECK_FALSE(std::filesystem::exists(folder / "out/shard.quarantine.jsonl"));
    }
  }
}

TEST_CASE("bad lines are counted, placed and kept apart; strict fails and leaves no shard") {
  const Folder folder;
  const Tokenizer tokenizer = small_tokenizer(folder);
  const std::vector<std::string> lines = {R"({"text": "good one"})",
                                          R"({"text": "broken)",
                                          R"({"body": "no text"})",
                                          R"({"text": 17})",
                                          "{\"text\": \"bad \xff\"}",
                                          "[1, 2]",
                                          R"({"text": ")" + std::string(3000, 'x') + R"("})",
                                          R"({"text": "trailing"} x)",
                                          R"({"text": null, "a": "b"})",
                                          R"({"text": "last good one"})"};
  std::string file;
  std::vector<std::uint64_t> starts;
  for (const auto& line : lines) {
    starts.push_back(file.size());
    file += line + "\n";
  }
  write_file(folder / "b.jsonl", file);
  PreprocessOptions options = options_for(folder, tokenizer, "b.jsonl");
  options.max_line_bytes = 2000;
  const PreprocessReport report = preprocess(options);
  CHECK(report.documents == 2);
  CHECK(report.broken_json == 2);
  CHECK(report.no_text == 2);
  CHECK(report.not_a_string == 2);
  CHECK(report.invalid_utf8 == 1);
  CHECK(report.too_long == 1);
  CHECK(documents_of(report, tokenizer) == std::vector<std::string>{"good one", "last good one"});
  const auto entries = quarantine_of(folder / "out/shard.quarantine.jsonl");
  REQUIRE(entries.size() == 8);
  const std::vector<std::size_t> bad = {1, 2, 3, 4, 5, 6, 7, 8};
  for (std::size_t i = 0; i < bad.size(); ++i) {
    CHECK(entries[i]["line"] == bad[i] + 1);
    CHECK(entries[i]["byte"] >= starts[bad[i]]);
    CHECK(entries[i]["byte"] <= starts[bad[i]] + lines[bad[i]].size());
    CHECK(entries[i]["file"] == folder / "b.jsonl");
  }
  CHECK(entries[3]["kind"] == "invalid_utf8");
  CHECK(entries[3]["byte"] == starts[4] + lines[4].find('\xff'));
  CHECK(entries[5]["kind"] == "too_long");

  options.strict = true;
  options.output = folder / "strict/shard";
  const std::string message = error_of(Status::input, [&] { preprocess(options); });
  CHECK(contains(message, "b.jsonl:2:"));
  CHECK(quarantine_of(folder / "strict/shard.quarantine.jsonl").size() == 8);
  CHECK_FALSE(std::filesystem::exists(folder / "strict/shard-00000.h5"));
  CHECK_FALSE(std::filesystem::exists(folder / "strict/shard-00000.h5.part"));
}

TEST_CASE("text files are one document each, or one a line") {
  const Folder folder;
  const Tokenizer tokenizer = small_tokenizer(folder);
  write_file(folder / "a.txt",
             "\xef\xbb\xbf"
             "first line\n\n二行目\n");
  write_file(folder / "b.txt", "no line break");
  PreprocessOptions options = options_for(folder, tokenizer, "*.txt");
  CHECK(documents_of(preprocess(options), tokenizer) ==
        std::vector<std::string>{"first line\n\n二行目\n", "no line break"});
  options.split = TextSplit::lines;
  CHECK(documents_of(preprocess(options), tokenizer) ==
        std::vector<std::string>{"first line", "二行目", "no line break"});
}

TEST_CASE("a shard ends at its size, ids may be left out, and finished shards aren't replaced unasked") {
  const Folder folder;
  const Tokenizer tokenizer = small_tokenizer(folder);
  PreprocessOptions options = options_for(folder, tokenizer, "corpus.jsonl");
  options.max_shard_bytes = 6000;
  const PreprocessReport split = preprocess(options);
  REQUIRE(split.shards.size() > 2);
  for (const auto& path : split.shards) CHECK(verify_shard(path).ok);
  std::uint64_t tokens = 0;
  for (const auto& path : split.shards) tokens += TokenShard(path).info().tokens;
  CHECK(tokens == split.tokens);
  options.overwrite = false;
  CHECK(contains(error_of(Status::usage, [&] { preprocess(options); }), "--overwrite"));
  options.overwrite = true;
  options.max_shard_bytes = 1U << 30U;
  options.append_eos = false;
  options.add_bos = true;
  const PreprocessReport whole = preprocess(options);
  CHECK(whole.shards.size() == 1);
  CHECK_FALSE(std::filesystem::exists(split.shards[1]));  // nothing stale is left beside it
  const TokenShard shard(whole.shards[0]);
  std::vector<std::int32_t> first(1), last(1);
  shard.read(0, first);
  shard.read(shard.document_offset(1) - 1, last);
  CHECK(first[0] == tokenizer.bos_id());
  CHECK(last[0] != tokenizer.eos_id());
}

TEST_CASE("damaged compressed files, missing inputs and empty ones are errors that leave nothing") {
  const Folder folder;
  const Tokenizer tokenizer = small_tokenizer(folder);
  const std::string lines = read_file(folder / "corpus.jsonl");
  for (const std::string extension : {".gz", ".zst"}) {
    const std::string packed = extension == ".gz" ? gzip(lines) : zstd(lines);
    write_file(folder / ("cut.jsonl" + extension), packed.substr(0, packed.size() - 20));
    const std::string message =
        error_of(Status::input, [&] { preprocess(options_for(folder, tokenizer, "cut.jsonl" + extension)); });
    CHECK(contains(message, "cut.jsonl" + extension));
    CHECK_FALSE(std::filesystem::exists(folder / "out/shard-00000.h5"));
  }
  error_of(Status::input, [&] { preprocess(options_for(folder, tokenizer, "none.jsonl")); });
  write_file(folder / "empty.jsonl", "");
  error_of(Status::input, [&] { preprocess(options_for(folder, tokenizer, "empty.jsonl")); });
}
