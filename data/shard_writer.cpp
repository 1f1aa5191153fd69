#include <fmt/format.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "shard_format.hpp"

namespace dropcycle {
namespace shard_format {

BlockDigest digest_block(const void* data, std::size_t size) {
  const XXH128_hash_t hash = XXH3_128bits(data, size);
  return {hash.high64, hash.low64};
}

std::string content_digest(const ShardInfo& info, std::span<const BlockDigest> tokens,
                           std::span<const BlockDigest> offsets) {
  Digester digester;
  const std::string attributes = fmt::format(
      "{} {}\ntokenizer_digest {}\nvocabulary {}\nsource {}\ntokens {}\ndocuments {}\ntoken_bytes {}\nblock_bytes {}\n",
      kFormat, info.version, info.tokenizer_digest, info.vocabulary, info.source, info.tokens, info.documents,
      info.token_bytes, info.block_bytes);
  digester.update(attributes.data(), attributes.size());
  digester.update(tokens.data(), tokens.size_bytes());
  digester.update(offsets.data(), offsets.size_bytes());
  return digester.finish();
}

}  // namespace shard_format

namespace {

using namespace shard_format;

Handle access_list() {
  Handle list(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // Every object at a multiple of 4096: the first dataset's place then doesn't depend on its size.
  const bool ok = list && H5Pset_libver_bounds(list.get(), H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
                  H5Pset_alignment(list.get(), 1, 4096) >= 0 && H5Pset_file_locking(list.get(), false, true) >= 0;
  require(ok, "HDF5 refused the file options of a token shard");
  return list;
}

// No times in the file: equal content gives equal bytes.
Handle creation_list() {
  Handle list(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  require(list && H5Pset_obj_track_times(list.get(), false) >= 0, "HDF5 refused the creation options of a token shard");
  return list;
}

// A contiguous dataset that takes its room at once and isn't filled.
Handle create_dataset(hid_t file, const char* name, hid_t type, std::span<const hsize_t> sizes) {
  const Handle space(H5Screate_simple(static_cast<int>(sizes.size()), sizes.data(), nullptr), H5Sclose);
  const Handle options(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_layout(options.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(options.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(options.get(), H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(options.get(), false);
  return {H5Dcreate2(file, name, type, space.get(), H5P_DEFAULT, options.get(), H5P_DEFAULT), H5Dclose};
}

hid_t token_type(std::uint64_t token_bytes) { return token_bytes == 2 ? H5T_STD_U16LE : H5T_STD_U32LE; }

// Where HDF5 puts the first dataset of a file: asked of a file in memory.
std::uint64_t first_dataset_offset() {
  const Handle list = access_list();
  H5Pset_fapl_core(list.get(), 1 << 16, false);
  const Handle creation = creation_list();
  const Handle file(H5Fcreate("probe", H5F_ACC_TRUNC, creation.get(), list.get()), H5Fclose);
  const hsize_t one = 1;
  const Handle dataset = create_dataset(file.get(), kTokens, H5T_STD_U16LE, {&one, 1});
  require(static_cast<bool>(dataset), "HDF5 can't create a file in memory");
  return H5Dget_offset(dataset.get());
}

}  // namespace

struct ShardWriter::State {
  std::filesystem::path path, temporary;
  ShardInfo info;
  int descriptor = -1;
  Handle file;
  std::uint64_t tokens_offset = 0;
  std::uint64_t written_bytes = 0;  // of tokens, whole blocks
  std::vector<unsigned char> block = std::vector<unsigned char>(kBlockBytes);
  std::size_t block_used = 0;
  std::vector<BlockDigest> digests;
  std::vector<std::uint64_t> offsets = {0};

  template <class Token>
  void append(std::span<const std::int32_t> tokens);
  void flush_block();
  bool write_metadata();
  bool write_table(const char* name, hid_t type, std::span<const hsize_t> sizes, const void* values) const;
  bool write_attributes() const;
  bool write_text(const char* name, const std::string& value) const;
  bool write_number(const char* name, std::uint64_t value) const;
};

ShardWriter::ShardWriter(std::filesystem::path path, std::string tokenizer_digest, std::uint64_t vocabulary,
                         std::string source)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.path = std::move(path);
  state.temporary = state.path.string() + ".tmp";
  state.info = {state.path, kVersion, std::move(tokenizer_digest), vocabulary,  std::move(source),
                0,          0,        bytes_per_token(vocabulary), kBlockBytes, {}};
  const QuietHdf5 quiet;
  state.tokens_offset = first_dataset_offset();
  state.descriptor = file_system().create(state.temporary);
  const Handle list = access_list();
  const Handle creation = creation_list();
  state.file = Handle(H5Fcreate(state.temporary.c_str(), H5F_ACC_TRUNC, creation.get(), list.get()), H5Fclose);
  if (!state.file) fail(Status::storage, "{}: HDF5 can't create the file", state.temporary.string());
}

ShardWriter::~ShardWriter() {
  if (state_->descriptor < 0) return;
  const QuietHdf5 quiet;
  state_->file.reset();
  ::close(state_->descriptor);
  ::unlink(state_->temporary.c_str());
}

template <class Token>
void ShardWriter::State::append(std::span<const std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    const auto value = static_cast<Token>(token);
    std::memcpy(block.data() + block_used, &value, sizeof value);
    block_used += sizeof value;
    if (block_used == kBlockBytes) flush_block();
  }
}

void ShardWriter::State::flush_block() {
  digests.push_back(digest_block(block.data(), block_used));
  file_system().write(descriptor, block.data(), block_used, tokens_offset + written_bytes, temporary);
  written_bytes += block_used;
  block_used = 0;
}

void ShardWriter::add_tokens(std::span<const std::int32_t> tokens) {
  State& state = *state_;
  for (const std::int32_t token : tokens) {
    require(token >= 0 && static_cast<std::uint64_t>(token) < state.info.vocabulary,
            "{}: token id {} is outside the vocabulary of {}", state.path.string(), token, state.info.vocabulary);
  }
  if (state.info.token_bytes == 2) {
    state.append<std::uint16_t>(tokens);
  } else {
    state.append<std::uint32_t>(tokens);
  }
  state.info.tokens += tokens.size();
}

void ShardWriter::end_document() {
  state_->info.documents += 1;
  state_->offsets.push_back(state_->info.tokens);
}

void ShardWriter::add_document(std::span<const std::int32_t> tokens) {
  add_tokens(tokens);
  end_document();
}

std::uint64_t ShardWriter::size_bytes() const {
  const State& state = *state_;
  return state.tokens_offset + state.info.tokens * state.info.token_bytes +
         state.offsets.size() * sizeof(std::uint64_t);
}

std::uint64_t ShardWriter::documents() const { return state_->info.documents; }

bool ShardWriter::State::write_table(const char* name, hid_t type, std::span<const hsize_t> sizes,
                                     const void* values) const {
  Handle dataset = create_dataset(file.get(), name, type, sizes);
  const bool empty = sizes[0] == 0;
  return dataset && (empty || H5Dwrite(dataset.get(), H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0) &&
         dataset.reset();
}

bool ShardWriter::State::write_text(const char* name, const std::string& value) const {
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), value.size() + 1);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  Handle attribute(H5Acreate2(file.get(), name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  return attribute && H5Awrite(attribute.get(), type.get(), value.c_str()) >= 0 && attribute.reset();
}

bool ShardWriter::State::write_number(const char* name, std::uint64_t value) const {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  Handle attribute(H5Acreate2(file.get(), name, H5T_STD_U64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  return attribute && H5Awrite(attribute.get(), H5T_NATIVE_UINT64, &value) >= 0 && attribute.reset();
}

bool ShardWriter::State::write_attributes() const {
  return write_text("format", kFormat) && write_number("version", static_cast<std::uint64_t>(info.version)) &&
         write_text("tokenizer_digest", info.tokenizer_digest) && write_number("vocabulary", info.vocabulary) &&
         write_text("source", info.source) && write_number("tokens", info.tokens) &&
         write_number("documents", info.documents) && write_number("token_bytes", info.token_bytes) &&
         write_number("block_bytes", info.block_bytes) && write_text("content_digest", info.content_digest);
}

// Everything but the tokens; false if HDF5 failed.
bool ShardWriter::State::write_metadata() {
  const hsize_t count = info.tokens;
  Handle tokens = create_dataset(file.get(), kTokens, token_type(info.token_bytes), {&count, 1});
  if (!tokens) return false;
  require(count == 0 || H5Dget_offset(tokens.get()) == tokens_offset, "{}: HDF5 put the tokens at byte {}, not {}",
          temporary.string(), H5Dget_offset(tokens.get()), tokens_offset);
  std::vector<BlockDigest> offset_digests;
  const auto* bytes = reinterpret_cast<const char*>(offsets.data());
  const std::uint64_t size = offsets.size() * sizeof(std::uint64_t);
  for (std::uint64_t place = 0; place < size; place += kBlockBytes) {
    offset_digests.push_back(digest_block(bytes + place, std::min(kBlockBytes, size - place)));
  }
  info.content_digest = content_digest(info, digests, offset_digests);
  const hsize_t offset_sizes[] = {offsets.size()};
  const hsize_t digest_sizes[] = {digests.size(), 2};
  const hsize_t offset_digest_sizes[] = {offset_digests.size(), 2};
  return tokens.reset() && write_table(kOffsets, H5T_STD_U64LE, offset_sizes, offsets.data()) &&
         write_table(kTokenDigests, H5T_STD_U64LE, digest_sizes, digests.data()) &&
         write_table(kOffsetDigests, H5T_STD_U64LE, offset_digest_sizes, offset_digests.data()) && write_attributes() &&
         H5Fflush(file.get(), H5F_SCOPE_LOCAL) >= 0 && write_number("complete", 1) && file.reset();
}

ShardInfo ShardWriter::commit() {
  State& state = *state_;
  if (state.block_used > 0) state.flush_block();
  const QuietHdf5 quiet;
  errno = 0;
  if (!state.write_metadata()) {
    fail(Status::storage, "{}: HDF5 can't write the shard's metadata ({}): free some space or choose another folder",
         state.temporary.string(), std::strerror(errno));
  }
  file_system().sync(state.descriptor, state.temporary);
  const ShardReport report = verify_shard(state.temporary);
  if (!report.ok) fail(Status::storage, "{} (read back after writing): the storage is damaged", report.message);
  file_system().close(state.descriptor, state.temporary);
  state.descriptor = -1;
  file_system().rename(state.temporary, state.path);
  file_system().sync_directory(state.path.parent_path());
  return state.info;
}

}  // namespace dropcycle
