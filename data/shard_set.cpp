#include "shard_set.hpp"

#include <fmt/format.h>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kShardDocuments = 1ULL << 22U;  // their offsets are kept in memory until commit

}  // namespace

ShardSet::ShardSet(ShardSetOptions options) : options_(std::move(options)) {
  if (const auto old = existing(); !old.empty() && !options_.overwrite) {
    fail(Status::usage, "{}: is there already: choose another --output, or say --overwrite to replace it",
         old.front().string());
  }
  if (const fs::path prefix = options_.prefix; prefix.has_parent_path()) fs::create_directories(prefix.parent_path());
}

ShardSet::~ShardSet() {
  writer_.reset();
  std::error_code ignored;
  for (std::size_t i = 0; i < named_from_; ++i) fs::remove(part(i), ignored);
}

fs::path ShardSet::part(std::size_t index) const { return fmt::format("{}-{:05}.h5.part", options_.prefix, index); }

std::vector<fs::path> ShardSet::existing() const {
  std::vector<fs::path> found;
  for (std::size_t i = 0;; ++i) {
    fs::path path = fmt::format("{}-{:05}.h5", options_.prefix, i);
    if (!fs::exists(path)) return found;
    found.push_back(std::move(path));
  }
}

ShardWriter& ShardSet::writer() {
  if (!writer_) {
    writer_.emplace(part(named_from_), options_.tokenizer_digest, options_.vocabulary, options_.source);
  }
  return *writer_;
}

void ShardSet::add_tokens(std::span<const std::int32_t> tokens) { writer().add_tokens(tokens); }

void ShardSet::end_document() {
  writer().end_document();
  if (writer_->size_bytes() >= options_.max_shard_bytes || writer_->documents() >= kShardDocuments) finish_shard();
}

void ShardSet::finish_shard() {
  writer_->commit();
  writer_.reset();
  ++named_from_;
}

std::vector<fs::path> ShardSet::commit() {
  if (writer_) finish_shard();
  std::vector<fs::path> paths;
  for (const fs::path& old : existing()) file_system().remove_all(old);
  for (std::size_t i = 0; i < named_from_; ++i) {
    paths.emplace_back(fmt::format("{}-{:05}.h5", options_.prefix, i));
    file_system().rename(part(i), paths.back());
  }
  named_from_ = 0;
  if (!paths.empty()) file_system().sync_directory(paths.front().parent_path());
  return paths;
}

std::string source_name(const std::string& prefix, const std::string& source) {
  const std::string last = fs::path(prefix).filename().string();
  if (last.empty()) fail(Status::usage, "--output {}: expected a prefix such as shards/en", prefix);
  return source.empty() ? last : source;
}

}  // namespace dropcycle
