// What the tests of the data library share: a folder that vanishes, shards of given documents, one-byte edits.
#pragma once

#include <doctest/doctest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/data/shard.hpp"

namespace dropcycle::testing {

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "dropcycle-data-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

using Documents = std::vector<std::vector<std::int32_t>>;

inline ShardInfo write_shard(const std::string& path, const Documents& documents, std::uint64_t vocabulary = 1000,
                             const std::string& tokenizer = "tokenizer-a", const std::string& source = "source") {
  ShardWriter writer(path, tokenizer, vocabulary, source);
  for (const auto& document : documents) writer.add_document(document);
  return writer.commit();
}

inline void flip_byte(const std::string& path, std::uint64_t place) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(place));
  const int before = file.get();
  file.seekp(static_cast<std::streamoff>(place));
  file.put(static_cast<char>(before ^ 0x10));
}

// The message of the Error that `call` throws; fails the test if it throws none or of another status.
template <class Call>
std::string error_of(Status status, Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(static_cast<int>(error.status()) == static_cast<int>(status));
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  FAIL_CHECK("no error was thrown");
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace dropcycle::testing
