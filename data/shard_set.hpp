// The shards under one prefix: written as <prefix>-00000.h5.part, named <prefix>-00000.h5 only when all are there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/data/shard.hpp"

namespace dropcycle {

struct ShardSetOptions {
  std::string prefix, source, tokenizer_digest;
  std::uint64_t vocabulary = 0;
  std::uint64_t max_shard_bytes = 0;  // a shard ends with the document that reaches it
  bool overwrite = false;             // replace the shards that have this prefix already
};

class ShardSet {
 public:
  // Throws Error{usage} if there are shards and they may not be replaced. Makes the prefix' folder.
  explicit ShardSet(ShardSetOptions options);
  ~ShardSet();
  ShardSet(const ShardSet&) = delete;
  ShardSet& operator=(const ShardSet&) = delete;

  // Of the document that is being written.
  void add_tokens(std::span<const std::int32_t> tokens);
  void end_document();
  // The shards, in order.
  std::vector<std::filesystem::path> commit();

 private:
  // Finished shards of an earlier run with this prefix.
  std::vector<std::filesystem::path> existing() const;
  std::filesystem::path part(std::size_t index) const;
  ShardWriter& writer();
  void finish_shard();

  ShardSetOptions options_;
  std::optional<ShardWriter> writer_;
  std::size_t named_from_ = 0;  // parts that are finished and not yet named
};

// The name kept in the shards: `source`, or the last part of `prefix`. Throws Error{usage} for a prefix without one.
std::string source_name(const std::string& prefix, const std::string& source);

}  // namespace dropcycle
