#include "source.hpp"

#include <algorithm>

#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"

namespace dropcycle {

Source::Source(const SourceConfig& config, std::int64_t model_vocabulary, const std::string& tokenizer_digest)
    : name_(config.name) {
  Digester content;
  for (const auto& path : expand_globs(config.shards)) {
    const TokenShard& shard = shards_.emplace_back(path);
    const ShardInfo& info = shard.info();
    const std::string& expected = tokenizer_digest.empty() ? shards_.front().info().tokenizer_digest : tokenizer_digest;
    if (info.tokenizer_digest != expected) {
      fail(Status::input,
           "{}: attribute tokenizer_digest: the shard was made with tokenizer {}, expected {}: run `dropcycle "
           "preprocess` with the tokenizer of this run",
           path.string(), info.tokenizer_digest, expected);
    }
    if (info.vocabulary > static_cast<std::uint64_t>(model_vocabulary)) {
      fail(Status::input,
           "{}: attribute vocabulary: token ids go up to {}, but the model has a vocabulary of {}: set "
           "model.vocab_size to at least {}",
           path.string(), info.vocabulary - 1, model_vocabulary, info.vocabulary);
    }
    starts_.push_back(starts_.back() + info.tokens);
    content.update(info.content_digest.data(), info.content_digest.size());
  }
  if (shards_.empty()) fail(Status::usage, "source {} of data has no shards: list files or globs in shards", name_);
  content_ = content.finish();
}

std::size_t Source::shard_of(std::uint64_t token) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), token);
  return static_cast<std::size_t>(after - starts_.begin()) - 1;
}

void Source::read(std::uint64_t first, std::span<std::int32_t> out) const {
  for (std::size_t shard = shard_of(first); !out.empty(); ++shard) {
    const std::size_t count = std::min<std::uint64_t>(out.size(), starts_[shard + 1] - first);
    shards_[shard].read(first - starts_[shard], out.first(count));
    out = out.subspan(count);
    first += count;
  }
}

std::vector<std::size_t> Source::document_starts(std::uint64_t first, std::uint64_t count) const {
  std::vector<std::size_t> places;
  const std::uint64_t end = first + count;
  for (std::size_t shard = shard_of(first); shard < shards_.size() && starts_[shard] < end; ++shard) {
    const std::uint64_t base = starts_[shard];
    if (shards_[shard].info().tokens == 0) continue;
    std::uint64_t document = first > base ? shards_[shard].document_of(first - base) + 1 : 0;
    for (; document < shards_[shard].info().documents; ++document) {
      const std::uint64_t start = base + shards_[shard].document_offset(document);
      if (start >= std::min(end, starts_[shard + 1])) break;
      if (start > first && (places.empty() || places.back() != start - first)) places.push_back(start - first);
    }
  }
  return places;
}

std::int64_t Source::fill(std::uint64_t first, bool reset_at_document_end, const Sample& sample) const {
  const std::size_t length = sample.tokens.size();
  const std::size_t inputs = std::min<std::uint64_t>(length, tokens() - 1 - first);
  read(first, sample.tokens.first(inputs));
  std::copy_n(sample.tokens.begin() + 1, inputs - 1, sample.targets.begin());
  read(first + inputs, sample.targets.subspan(inputs - 1, 1));
  std::fill(sample.tokens.begin() + static_cast<std::ptrdiff_t>(inputs), sample.tokens.end(), 0);
  std::fill(sample.targets.begin() + static_cast<std::ptrdiff_t>(inputs), sample.targets.end(), -1);
  std::vector<std::size_t> starts;
  if (reset_at_document_end) starts = document_starts(first, inputs + 1);
  auto counted = static_cast<std::int64_t>(inputs);
  std::size_t document = 0, next = 0;  // where the place's document begins; the next start
  for (std::size_t place = 0; place < length; ++place) {
    if (next < starts.size() && starts[next] == place) document = starts[next++];
    sample.positions[place] = static_cast<std::int32_t>(place - document);
    sample.first_key[place] = static_cast<std::int32_t>(document);
    if (next < starts.size() && starts[next] == place + 1) {  // the next token is another document's
      sample.targets[place] = -1;
      --counted;
    }
  }
  return counted;
}

void Source::locate(std::uint64_t first, std::uint64_t last, SampleOrigin& origin) const {
  const std::size_t begin = shard_of(first), end = shard_of(last);
  origin.file = shards_[begin].info().path.string();
  origin.first_document = shards_[begin].document_of(first - starts_[begin]);
  origin.last_document = shards_[end].document_of(last - starts_[end]);
}

}  // namespace dropcycle
