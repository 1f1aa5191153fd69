#include "dropcycle/data/shard.hpp"

#include <chrono>
#include <thread>

#include "data_fixture.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

std::vector<std::int32_t> ramp(std::size_t count, std::int32_t modulus) {
  std::vector<std::int32_t> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<std::int32_t>(i * 7 % static_cast<std::size_t>(modulus));
  return values;
}

std::vector<std::int32_t> all_tokens(const TokenShard& shard) {
  std::vector<std::int32_t> tokens(shard.info().tokens);
  shard.read(0, tokens);
  return tokens;
}

// Fails the n-th write.
class FullDisk : public FileSystem {
 public:
  explicit FullDisk(int good_writes) : left_(good_writes) {}
  void write(int descriptor, const void* data, std::size_t size, std::uint64_t offset,
             const std::filesystem::path& path) override {
    if (left_-- <= 0) fail(Status::storage, "{}: write failed: No space left on device", path.string());
    FileSystem::write(descriptor, data, size, offset, path);
  }

 private:
  int left_;
};

}  // namespace

TEST_CASE("what was written is read, in both widths, with empty and single-token documents") {
  const Folder folder;
  for (const std::uint64_t vocabulary : {65536ULL, 65537ULL}) {
    CAPTURE(vocabulary);
    const auto last = static_cast<std::int32_t>(vocabulary - 1);
    const Documents documents = {{}, {1, 2, 3}, {}, {}, {last}, {4, 5}, {}};
    const std::string path = folder / "a.h5";
    const ShardInfo written = write_shard(path, documents, vocabulary);
    const TokenShard shard(path);
    CHECK(shard.info().tokens == 6);
    CHECK(shard.info().documents == 7);
    CHECK(shard.info().token_bytes == (vocabulary == 65536 ? 2 : 4));
    CHECK(shard.info().content_digest == written.content_digest);
    CHECK(all_tokens(shard) == std::vector<std::int32_t>{1, 2, 3, last, 4, 5});
    const std::vector<std::uint64_t> owners = {1, 1, 1, 4, 5, 5};
    for (std::uint64_t token = 0; token < 6; ++token) CHECK(shard.document_of(token) == owners[token]);
    CHECK(is_token_shard(path));
    CHECK(verify_shard(path).ok);
    CHECK(folder.files() == 1);  // no temporary is left
  }
}

TEST_CASE("a shard without documents, and one of several blocks") {
  const Folder folder;
  write_shard(folder / "empty.h5", {});
  const TokenShard empty(folder / "empty.h5");
  CHECK(empty.info().tokens == 0);
  CHECK(verify_shard(folder / "empty.h5").ok);
  const auto big = ramp((3U << 19U) + 17, 997);  // three blocks of uint16, the last begun
  write_shard(folder / "big.h5", {big, {}, {5}});
  const TokenShard shard(folder / "big.h5");
  auto expected = big;
  expected.push_back(5);
  CHECK(all_tokens(shard) == expected);
  std::vector<std::int32_t> across(1000);
  shard.read((1U << 19U) - 500, across);
  CHECK(std::equal(across.begin(), across.end(), big.begin() + (1 << 19) - 500));
  CHECK(shard.document_of(big.size()) == 2);
}

TEST_CASE("equal content gives equal bytes") {
  const Folder folder;
  const Documents documents = {ramp(1000, 999), {3}};
  write_shard(folder / "a.h5", documents);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // the clock's second mustn't show
  write_shard(folder / "b.h5", documents);
  CHECK(read_file(folder / "a.h5") == read_file(folder / "b.h5"));
}

TEST_CASE("any flipped byte of tokens or offsets is found and its place named") {
  const Folder folder;
  const std::string path = folder / "a.h5";
  write_shard(path, {ramp(700000, 999), {1, 2}});
  const std::string bytes = read_file(path);
  const std::vector<std::int32_t> begin = {0, 7, 14, 21};
  std::string pattern;  // the tokens' first bytes as they stand in the file
  for (const std::int32_t token : begin) pattern += {static_cast<char>(token), '\0'};
  const std::size_t tokens = bytes.find(pattern);
  REQUIRE(tokens != std::string::npos);
  for (const std::size_t place : {std::size_t{0}, std::size_t{5}, std::size_t{1 << 20}, std::size_t{1400003}}) {
    CAPTURE(place);
    write_file(path, bytes);
    flip_byte(path, tokens + place);
    const ShardReport report = verify_shard(path);
    CHECK_FALSE(report.ok);
    CHECK(contains(report.message, path));
    CHECK(contains(report.message, "dataset tokens"));
    const std::size_t block = tokens + (place >> 20U << 20U);
    CHECK(contains(report.message, std::to_string(block) + " to "));
    const TokenShard shard(path);  // opening stays cheap: the block is checked when it is read
    std::vector<std::int32_t> out(4);
    error_of(Status::input, [&] { shard.read(place / 2, std::span(out).first(1)); });
  }
}

TEST_CASE("no flipped byte anywhere in a small shard changes what is read unnoticed") {
  const Folder folder;
  const std::string path = folder / "a.h5";
  const Documents documents = {{1, 2, 3}, {}, {4, 5, 6, 7}};
  write_shard(path, documents);
  const std::string bytes = read_file(path);
  const ShardInfo before = TokenShard(path).info();
  std::size_t found = 0;
  for (std::size_t place = 0; place < bytes.size(); ++place) {
    if (place % (bytes[place] == 0 ? 61 : 3) != 0) continue;  // most of the file is padding: a sample will do
    std::string changed = bytes;
    changed[place] = static_cast<char>(changed[place] ^ 0x10);
    {
      std::ofstream stream(path, std::ios::binary);
      stream << changed;
    }
    if (!verify_shard(path).ok) {
      ++found;
      continue;
    }
    const TokenShard shard(path);
    CHECK(shard.info().content_digest == before.content_digest);
    CHECK(shard.info().source == before.source);
    CHECK(all_tokens(shard) == std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7});
    CHECK(shard.document_offset(1) == 3);
  }
  CHECK(found > 100);
}

TEST_CASE("a truncated, unfinished or missing shard is refused in one line") {
  const Folder folder;
  const std::string path = folder / "a.h5";
  write_shard(path, {ramp(5000, 999)});
  const std::string bytes = read_file(path);
  for (const std::size_t size : {bytes.size() - 1, bytes.size() / 2, std::size_t{100}, std::size_t{0}}) {
    CAPTURE(size);
    write_file(path, bytes.substr(0, size));
    CHECK(contains(error_of(Status::input, [&] { TokenShard shard(path); }), path));
    CHECK_FALSE(verify_shard(path).ok);
  }
  CHECK(contains(error_of(Status::input, [&] { TokenShard shard(folder / "none.h5"); }), "not found"));
  write_file(folder / "text.h5", "not HDF5 at all");
  CHECK_FALSE(is_token_shard(folder / "text.h5"));
  error_of(Status::input, [&] { TokenShard shard(folder / "text.h5"); });
  CHECK_FALSE(is_token_shard(folder / "none.h5"));
}

TEST_CASE("a writer that is not committed, or whose disk is full, leaves nothing") {
  const Folder folder;
  { ShardWriter writer(folder / "a.h5", "t", 10, "s"); }
  CHECK(folder.files() == 0);
  FullDisk disk(1);
  FileSystem* before = set_file_system(&disk);
  const std::string message = error_of(Status::storage, [&] {
    ShardWriter writer(folder / "a.h5", "t", 1000, "s");
    writer.add_document(ramp(3U << 19U, 999));
    writer.commit();
  });
  set_file_system(before);
  CHECK(contains(message, "No space left"));
  CHECK(folder.files() == 0);
}

TEST_CASE("an id outside the vocabulary isn't written") {
  const Folder folder;
  ShardWriter writer(folder / "a.h5", "t", 10, "s");
  const std::vector<std::int32_t> high = {10}, low = {-1};
  error_of(Status::internal, [&] { writer.add_document(high); });
  error_of(Status::internal, [&] { writer.add_document(low); });
}

TEST_CASE("globs are expanded in order") {
  const Folder folder;
  for (const char* name : {"b-1.h5", "b-0.h5", "a.h5"}) write_file(folder / name, "x");
  const auto paths = expand_globs({folder / "b-*.h5", folder / "a.h5"});
  REQUIRE(paths.size() == 3);
  CHECK(paths[0].filename() == "b-0.h5");
  CHECK(paths[1].filename() == "b-1.h5");
  CHECK(paths[2].filename() == "a.h5");
  error_of(Status::input, [&] { expand_globs({folder / "c-*.h5"}); });
}
