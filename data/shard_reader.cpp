#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "shard_format.hpp"

namespace dropcycle {
namespace {

using namespace shard_format;

// A contiguous dataset as bytes of the file.
struct Extent {
  const char* name = "";
  std::uint64_t offset = 0, elements = 0, element_bytes = 0;
  std::vector<BlockDigest> digests;
  std::unique_ptr<std::atomic<bool>[]> checked;

  std::uint64_t bytes() const { return elements * element_bytes; }
};

// Read-only and without a lock: readers and writers of other processes don't block each other.
Handle open_for_reading(const std::filesystem::path& path) {
  const Handle list(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(list.get(), false, true);
  return {H5Fopen(path.c_str(), H5F_ACC_RDONLY, list.get()), H5Fclose};
}

// What HDF5 is needed for: attributes, places and tables of digests. Everything else goes by pread.
class MetadataReader {
 public:
  explicit MetadataReader(const std::filesystem::path& path) : path_(path.string()) {
    if (!std::filesystem::is_regular_file(path)) {
      fail(Status::input, "{}: token shard not found: check data paths, or make it with `dropcycle preprocess`", path_);
    }
    file_ = open_for_reading(path);
    if (!file_) damaged("isn't a whole HDF5 file (truncated, damaged or of another kind)");
  }

  [[noreturn]] void damaged(const std::string& what) const {
    fail(Status::input, "{}: {}: make the shard again with `dropcycle preprocess`, or take it out of data", path_,
         what);
  }

  ShardInfo info() const {
    ShardInfo info;
    if (text("format") != kFormat) damaged("isn't a token shard: attribute format isn't \"dropcycle.tokens\"");
    info.version = static_cast<std::int64_t>(number("version"));
    if (info.version != kVersion) damaged(fmt::format("has version {}, expected {}", info.version, kVersion));
    if (H5Aexists(file_.get(), "complete") <= 0 || number("complete") != 1) {
      damaged("was never completed: its writer was stopped");
    }
    info.tokenizer_digest = text("tokenizer_digest");
    info.vocabulary = number("vocabulary");
    info.source = text("source");
    info.tokens = number("tokens");
    info.documents = number("documents");
    info.token_bytes = number("token_bytes");
    info.block_bytes = number("block_bytes");
    info.content_digest = text("content_digest");
    if (info.block_bytes != kBlockBytes || info.token_bytes != bytes_per_token(info.vocabulary)) {
      damaged(fmt::format("has blocks of {} bytes and tokens of {} bytes, expected {} and {}", info.block_bytes,
                          info.token_bytes, kBlockBytes, bytes_per_token(info.vocabulary)));
    }
    return info;
  }

  // Dataset `name`, checked against the file's size, with its table of digests.
  Extent extent(const char* name, const char* digests, std::uint64_t elements, std::uint64_t element_bytes,
                std::uint64_t file_bytes) const {
    const Handle dataset = open(name, {elements}, element_bytes);
    Extent extent{name, 0, elements, element_bytes, {}, {}};
    if (elements > 0) {
      extent.offset = H5Dget_offset(dataset.get());
      if (extent.offset == HADDR_UNDEF) damaged(fmt::format("dataset {} isn't contiguous", name));
      if (elements > file_bytes / element_bytes || extent.offset > file_bytes - extent.bytes()) {
        damaged(fmt::format("dataset {} ends at byte {}, but the file has {} bytes: it is truncated", name,
                            extent.offset + extent.bytes(), file_bytes));
      }
    }
    const std::uint64_t blocks = block_count(extent.bytes());
    extent.digests.resize(blocks);
    const Handle table = open(digests, {blocks, 2}, sizeof(std::uint64_t));
    if (blocks > 0 &&
        H5Dread(table.get(), H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, extent.digests.data()) < 0) {
      damaged(fmt::format("dataset {} can't be read", digests));
    }
    extent.checked = std::make_unique<std::atomic<bool>[]>(blocks);
    return extent;
  }

 private:
  Handle open(const char* name, const std::vector<std::uint64_t>& sizes, std::uint64_t element_bytes) const {
    Handle dataset(H5Dopen2(file_.get(), name, H5P_DEFAULT), H5Dclose);
    if (!dataset) damaged(fmt::format("has no dataset {}", name));
    const Handle space(H5Dget_space(dataset.get()), H5Sclose);
    const Handle type(H5Dget_type(dataset.get()), H5Tclose);
    hsize_t found[H5S_MAX_RANK] = {};
    const int dims = H5Sget_simple_extent_dims(space.get(), found, nullptr);
    const bool same = dims == static_cast<int>(sizes.size()) && std::equal(sizes.begin(), sizes.end(), found) &&
                      H5Tget_size(type.get()) == element_bytes && H5Tget_class(type.get()) == H5T_INTEGER;
    if (!same) {
      damaged(fmt::format("dataset {} has {} elements of {} bytes, expected {} of {} integer bytes", name, found[0],
                          H5Tget_size(type.get()), sizes[0], element_bytes));
    }
    return dataset;
  }

  std::string text(const char* name) const {
    const Handle attribute(H5Aopen(file_.get(), name, H5P_DEFAULT), H5Aclose);
    if (!attribute) damaged(fmt::format("isn't a token shard: it has no attribute {}", name));
    const Handle type(H5Aget_type(attribute.get()), H5Tclose);
    const std::size_t size = H5Tget_size(type.get());
    const bool fits = H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 && size <= 65536;
    std::string value(fits ? size : 0, '\0');
    if (!fits || H5Aread(attribute.get(), type.get(), value.data()) < 0) {
      damaged(fmt::format("attribute {} isn't a text", name));
    }
    return value.c_str();
  }

  std::uint64_t number(const char* name) const {
    const Handle attribute(H5Aopen(file_.get(), name, H5P_DEFAULT), H5Aclose);
    std::uint64_t value = 0;
    if (!attribute || H5Aread(attribute.get(), H5T_NATIVE_UINT64, &value) < 0) {
      damaged(fmt::format("attribute {} is missing or isn't a number", name));
    }
    return value;
  }

  std::string path_;
  Handle file_;
};

}  // namespace

struct TokenShard::State {
  ShardInfo info;
  int descriptor = -1;
  Extent tokens, offsets;

  ~State() {
    if (descriptor >= 0) ::close(descriptor);
  }
  // Reads elements of `extent` as bytes, each block checked the first time.
  void read(const Extent& extent, std::uint64_t first, std::uint64_t count, void* out) const;
  void check_block(const Extent& extent, std::uint64_t block, std::vector<unsigned char>& buffer) const;
};

void TokenShard::State::check_block(const Extent& extent, std::uint64_t block,
                                    std::vector<unsigned char>& buffer) const {
  if (extent.checked[block].load(std::memory_order_acquire)) return;
  const std::uint64_t begin = block * kBlockBytes;
  const std::uint64_t size = std::min(kBlockBytes, extent.bytes() - begin);
  buffer.resize(size);
  read_at(descriptor, buffer.data(), size, extent.offset + begin, info.path);
  if (digest_block(buffer.data(), size) != extent.digests[block]) {
    fail(Status::input,
         "{}: dataset {}: bytes {} to {} of the file aren't what was written (digest differs): make the shard again "
         "with `dropcycle preprocess` or restore it from a copy",
         info.path.string(), extent.name, extent.offset + begin, extent.offset + begin + size);
  }
  extent.checked[block].store(true, std::memory_order_release);
}

void TokenShard::State::read(const Extent& extent, std::uint64_t first, std::uint64_t count, void* out) const {
  require(first <= extent.elements && count <= extent.elements - first,
          "{}: dataset {}: elements {} to {} of {} were asked for", info.path.string(), extent.name, first,
          first + count, extent.elements);
  if (count == 0) return;
  const std::uint64_t begin = first * extent.element_bytes, size = count * extent.element_bytes;
  std::vector<unsigned char> buffer;
  for (std::uint64_t block = begin / kBlockBytes; block <= (begin + size - 1) / kBlockBytes; ++block) {
    check_block(extent, block, buffer);
  }
  read_at(descriptor, out, size, extent.offset + begin, info.path);
}

TokenShard::TokenShard(const std::filesystem::path& path) : state_(std::make_unique<State>()) {
  const QuietHdf5 quiet;
  const MetadataReader reader(path);
  State& state = *state_;
  state.info = reader.info();
  state.info.path = path;
  const std::uint64_t file_bytes = std::filesystem::file_size(path);
  if (state.info.documents >= file_bytes / sizeof(std::uint64_t)) {
    reader.damaged(fmt::format("names {} documents, more than the file has room for", state.info.documents));
  }
  state.tokens = reader.extent(kTokens, kTokenDigests, state.info.tokens, state.info.token_bytes, file_bytes);
  state.offsets = reader.extent(kOffsets, kOffsetDigests, state.info.documents + 1, sizeof(std::uint64_t), file_bytes);
  if (content_digest(state.info, state.tokens.digests, state.offsets.digests) != state.info.content_digest) {
    reader.damaged(
        fmt::format("attributes or digests were changed: attribute content_digest is {}, not that of the "
                    "content",
                    state.info.content_digest));
  }
  state.descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (state.descriptor < 0) {
    fail(Status::input, "{}: can't be opened: {}{}", path.string(), std::strerror(errno),
         errno == EMFILE ? ": raise `ulimit -n` or make bigger shards (--max-shard-bytes)" : "");
  }
}

TokenShard::~TokenShard() = default;
TokenShard::TokenShard(TokenShard&&) noexcept = default;
TokenShard& TokenShard::operator=(TokenShard&&) noexcept = default;

const ShardInfo& TokenShard::info() const { return state_->info; }

void TokenShard::read(std::uint64_t first, std::span<std::int32_t> out) const {
  if (state_->info.token_bytes == 4) {
    state_->read(state_->tokens, first, out.size(), out.data());
    return;
  }
  // Into the upper half of `out`, then spread from the front.
  auto* narrow = reinterpret_cast<unsigned char*>(out.data()) + out.size() * 2;
  state_->read(state_->tokens, first, out.size(), narrow);
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t value = 0;
    std::memcpy(&value, narrow + i * 2, sizeof value);
    out[i] = value;
  }
}

std::uint64_t TokenShard::document_offset(std::uint64_t index) const {
  std::uint64_t value = 0;
  state_->read(state_->offsets, index, 1, &value);
  return value;
}

std::uint64_t TokenShard::document_of(std::uint64_t token) const {
  require(token < state_->info.tokens, "{}: token {} of {} was asked for", state_->info.path.string(), token,
          state_->info.tokens);
  std::uint64_t low = 0, high = state_->info.documents;  // offset(low) <= token < offset(high)
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    (document_offset(middle) <= token ? low : high) = middle;
  }
  return low;
}

void TokenShard::verify() const {
  const State& state = *state_;
  const std::string path = state.info.path.string();
  std::vector<std::int32_t> tokens(kBlockBytes / state.info.token_bytes);
  for (std::uint64_t first = 0; first < state.info.tokens; first += tokens.size()) {
    const std::size_t count = std::min<std::uint64_t>(tokens.size(), state.info.tokens - first);
    read(first, std::span(tokens).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      if (static_cast<std::uint32_t>(tokens[i]) >= state.info.vocabulary) {
        fail(Status::input, "{}: dataset {}: token {} is id {}, expected below the vocabulary of {}", path, kTokens,
             first + i, static_cast<std::uint32_t>(tokens[i]), state.info.vocabulary);
      }
    }
  }
  std::vector<std::uint64_t> offsets(kBlockBytes / sizeof(std::uint64_t));
  std::uint64_t before = 0;
  for (std::uint64_t first = 0; first <= state.info.documents; first += offsets.size()) {
    const std::uint64_t count = std::min<std::uint64_t>(offsets.size(), state.info.documents + 1 - first);
    state.read(state.offsets, first, count, offsets.data());
    for (std::uint64_t i = 0; i < count; ++i) {
      if (offsets[i] < before || (first + i == 0 && offsets[i] != 0)) {
        fail(Status::input, "{}: dataset {}: offset {} is {}, expected at least {}", path, kOffsets, first + i,
             offsets[i], before);
      }
      before = offsets[i];
    }
  }
  if (before != state.info.tokens) {
    fail(Status::input, "{}: dataset {}: the last offset is {}, expected the {} tokens", path, kOffsets, before,
         state.info.tokens);
  }
}

bool is_token_shard(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) return false;
  const QuietHdf5 quiet;
  const Handle file = open_for_reading(path);
  if (!file || H5Aexists(file.get(), "format") <= 0) return false;
  const Handle attribute(H5Aopen(file.get(), "format", H5P_DEFAULT), H5Aclose);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  const std::size_t size = H5Tget_size(type.get());
  if (H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) != 0 || size > 256) return false;
  std::string value(size, '\0');
  return H5Aread(attribute.get(), type.get(), value.data()) >= 0 && std::string(value.c_str()) == kFormat;
}

ShardReport verify_shard(const std::filesystem::path& path) {
  try {
    const TokenShard shard(path);
    shard.verify();
    const ShardInfo& info = shard.info();
    const std::uint64_t bytes = info.tokens * info.token_bytes + (info.documents + 1) * sizeof(std::uint64_t);
    return {true,
            fmt::format("{}: whole: {} tokens in {} documents, all {} blocks as written, content {}", path.string(),
                        info.tokens, info.documents,
                        block_count(info.tokens * info.token_bytes) + block_count((info.documents + 1) * 8),
                        info.content_digest),
            bytes};
  } catch (const Error& error) {
    return {false, error.what(), 0};
  }
}

std::string describe_shard(const std::filesystem::path& path, const Tokenizer* tokenizer, std::uint64_t documents) {
  const TokenShard shard(path);
  const ShardInfo& info = shard.info();
  std::string text = fmt::format(
      "token shard    {}\nsource         {}\ntokens         {} ({} bytes each)\ndocuments      {}\nvocabulary     {}\n"
      "tokenizer      {}\ncontent        {}\n",
      path.string(), info.source, info.tokens, info.token_bytes, info.documents, info.vocabulary, info.tokenizer_digest,
      info.content_digest);
  if (tokenizer != nullptr && tokenizer->digest() != info.tokenizer_digest) {
    fail(Status::input, "{}: was made with the tokenizer {}, but {} is {}: give the tokenizer that made it",
         path.string(), info.tokenizer_digest, tokenizer->path().string(), tokenizer->digest());
  }
  constexpr std::uint64_t kShown = 64;
  for (std::uint64_t d = 0; d < std::min(documents, info.documents); ++d) {
    const std::uint64_t begin = shard.document_offset(d), end = shard.document_offset(d + 1);
    std::vector<std::int32_t> ids(std::min(kShown, end - begin));
    shard.read(begin, ids);
    const std::string shown = tokenizer != nullptr ? tokenizer->decode(ids) : fmt::format("{}", fmt::join(ids, " "));
    text += fmt::format("\ndocument {} ({} tokens): {}{}\n", d, end - begin, shown, end - begin > kShown ? " ..." : "");
  }
  return text;
}

}  // namespace dropcycle
