// Token shards: HDF5 files of tokenized documents.
//
//   tokens            uint16 (vocabulary <= 65536) or uint32 [n], contiguous, unfiltered: read by pread
//   document_offsets  uint64 [documents + 1]: document d is tokens [offsets[d], offsets[d + 1]); offsets[documents] = n
//   token_digests     uint64 [blocks, 2]: XXH3-128 (high, low) of each block of 1 MiB of `tokens`
//   offset_digests    uint64 [blocks, 2]: the same of `document_offsets`
//   attributes        format = "dropcycle.tokens", version, tokenizer_digest, vocabulary, source, tokens, documents,
//                     token_bytes, block_bytes, content_digest, complete (= 1, written last)
//
// content_digest is XXH3-128 over the attributes and both tables of digests: it names the content of the whole file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace dropcycle {

class Tokenizer;

struct ShardInfo {
  std::filesystem::path path;
  std::int64_t version = 1;
  std::string tokenizer_digest;
  std::uint64_t vocabulary = 0;  // ids are below it
  std::string source;
  std::uint64_t tokens = 0;
  std::uint64_t documents = 0;
  std::uint64_t token_bytes = 0;  // of one token: 2 or 4
  std::uint64_t block_bytes = 0;
  std::string content_digest;
};

// Writes a shard, a bounded amount of memory whatever its size. Token blocks go through FileSystem straight to their
// place in `path + ".tmp"`; the HDF5 library writes the metadata around them into the same file at commit().
class ShardWriter {
 public:
  ShardWriter(std::filesystem::path path, std::string tokenizer_digest, std::uint64_t vocabulary, std::string source);
  ~ShardWriter();  // without commit(): deletes the temporary
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  // A document may be empty. Throws Error{internal} for an id outside the vocabulary.
  void add_document(std::span<const std::int32_t> tokens);
  // The same bit by bit: a document is what was added since the last one's end.
  void add_tokens(std::span<const std::int32_t> tokens);
  void end_document();
  // Of the file, were it committed now.
  std::uint64_t size_bytes() const;
  std::uint64_t documents() const;
  // Attributes, `complete`, close, reopen and verify, sync, rename, sync of the folder.
  ShardInfo commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Reads a shard. Thread safe. Every block is checked against its digest the first time that any of it is read.
class TokenShard {
 public:
  // Checks attributes, the tables of digests and the file's size: the cost doesn't depend on the number of tokens but
  // for 16 bytes per MiB. Throws Error{input} naming file, dataset and what was expected.
  explicit TokenShard(const std::filesystem::path& path);
  ~TokenShard();
  TokenShard(TokenShard&&) noexcept;
  TokenShard& operator=(TokenShard&&) noexcept;

  const ShardInfo& info() const;
  // Tokens [first, first + out.size()). Throws Error{input} with file, dataset and byte range where a block is bad.
  void read(std::uint64_t first, std::span<std::int32_t> out) const;
  // The document that holds token `token` (the last that starts at or before it); log2(documents) small reads.
  std::uint64_t document_of(std::uint64_t token) const;
  // document_offsets[index], index in [0, documents].
  std::uint64_t document_offset(std::uint64_t index) const;
  // Checks every block of both datasets, that offsets ascend and that ids are below the vocabulary.
  void verify() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Whether `path` is an HDF5 file with our format attribute; false for anything else, also for what can't be read.
bool is_token_shard(const std::filesystem::path& path);

struct ShardReport {
  bool ok = false;
  std::string message;  // one line: what was checked, or what is wrong, where, and what to do
  std::uint64_t bytes_checked = 0;
};
// Never throws for a bad file.
ShardReport verify_shard(const std::filesystem::path& path);
// Attributes and the first documents (decoded where a tokenizer is given), several lines.
std::string describe_shard(const std::filesystem::path& path, const Tokenizer* tokenizer = nullptr,
                           std::uint64_t documents = 3);

// The files that the patterns name (a pattern with *, ? or [ is a glob, sorted), in the order of the patterns.
// Throws Error{input} for a pattern that names nothing.
std::vector<std::filesystem::path> expand_globs(const std::vector<std::string>& patterns);

}  // namespace dropcycle
