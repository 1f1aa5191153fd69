// A source of samples: the documents of its shards, one after another.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/data/dataset.hpp"
#include "dropcycle/data/shard.hpp"

namespace dropcycle {

class Source {
 public:
  // Opens the shards and checks that the model and `tokenizer_digest` (if not empty) fit.
  Source(const SourceConfig& config, std::int64_t model_vocabulary, const std::string& tokenizer_digest);

  const std::string& name() const { return name_; }
  std::uint64_t tokens() const { return starts_.back(); }
  const std::string& tokenizer_digest() const { return shards_.front().info().tokenizer_digest; }
  const std::filesystem::path& first_file() const { return shards_.front().info().path; }
  // Digest over the shards' content digests.
  const std::string& content() const { return content_; }

  // Tokens [first, first + out.size()).
  void read(std::uint64_t first, std::span<std::int32_t> out) const;
  // Fills a sample with the window of up to S + 1 tokens from `first` on; past the source's end, tokens are 0 and
  // targets -1. Returns how many targets count.
  std::int64_t fill(std::uint64_t first, bool reset_at_document_end, const Sample& sample) const;
  // The documents of tokens [first, last].
  void locate(std::uint64_t first, std::uint64_t last, SampleOrigin& origin) const;

 private:
  std::size_t shard_of(std::uint64_t token) const;
  // The places p in (0, count) at which token first + p begins a document, ascending.
  std::vector<std::size_t> document_starts(std::uint64_t first, std::uint64_t count) const;

  std::string name_, content_;
  std::vector<TokenShard> shards_;
  std::vector<std::uint64_t> starts_ = {0};  // first token of each shard; at the end, all tokens
};

}  // namespace dropcycle
