#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/progress.hpp"
#include "dropcycle/data/preprocess.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "shard_set.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);
constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr std::uint64_t kHeaderBytes = 34;
constexpr std::size_t kBlock = std::size_t{1} << 16U;  // entries of a table, or tokens, read at once

class InputFile {
 public:
  explicit InputFile(fs::path path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      const std::string reason = descriptor_ < 0 ? std::strerror(errno) : "not a file";
      if (descriptor_ >= 0) ::close(descriptor_);
      fail(Status::input, "{}: can't be read ({}): give the prefix of Megatron's .idx and .bin", path_.string(),
           reason);
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
  }
  ~InputFile() { ::close(descriptor_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  void read(void* data, std::size_t size, std::uint64_t offset) const {
    read_at(descriptor_, data, size, offset, path_);
  }
  std::uint64_t size() const { return size_; }
  std::string name() const { return path_.string(); }

 private:
  fs::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

// A table of the .idx, in order.
template <class Value>
class Table {
 public:
  Table(const InputFile& file, std::uint64_t offset, std::uint64_t count)
      : file_(file), offset_(offset), left_(count) {}
  // Where the value that next() gives lies.
  std::uint64_t byte() const { return offset_ - (values_.size() - place_) * sizeof(Value); }
  Value next() {
    if (place_ == values_.size()) {
      values_.resize(std::min<std::uint64_t>(kBlock, left_));
      file_.read(values_.data(), values_.size() * sizeof(Value), offset_);
      offset_ += values_.size() * sizeof(Value);
      left_ -= values_.size();
      place_ = 0;
    }
    return values_[place_++];
  }

 private:
  const InputFile& file_;
  std::uint64_t offset_, left_;
  std::vector<Value> values_;
  std::size_t place_ = 0;
};

struct Index {
  unsigned type = 0;
  std::uint64_t token_bytes = 0, sequences = 0, bounds = 0;
};

std::uint64_t bytes_of_type(const InputFile& file, unsigned type) {
  constexpr std::array<std::uint64_t, 9> kBytes = {0, 1, 1, 2, 4, 8, 0, 0, 2};
  if (type >= kBytes.size() || kBytes[type] == 0) {
    fail(Status::input, "{}: byte 17: token type {}, expected 1 to 5 or 8 (integers): tokenize the text again",
         file.name(), type);
  }
  return kBytes[type];
}

Index read_header(const InputFile& file) {
  std::array<char, kHeaderBytes> header{};
  if (file.size() < kHeaderBytes) {
    fail(Status::input, "{}: {} bytes, a Megatron index has at least {}: copy it whole", file.name(), file.size(),
         kHeaderBytes);
  }
  file.read(header.data(), header.size(), 0);
  if (std::string_view(header.data(), kMagic.size()) != kMagic) {
    fail(Status::input, "{}: byte 0: not Megatron's MMIDIDX index: only that format is read", file.name());
  }
  const auto number = [&](std::size_t place) {
    std::uint64_t value = 0;
    std::memcpy(&value, header.data() + place, sizeof value);
    return value;
  };
  if (number(9) != 1) fail(Status::input, "{}: byte 9: version {}, expected 1", file.name(), number(9));
  Index index;
  index.type = static_cast<unsigned char>(header[17]);
  index.token_bytes = bytes_of_type(file, index.type);
  index.sequences = number(18);
  index.bounds = number(26);
  const std::uint64_t room = file.size() - kHeaderBytes;
  const bool counted = index.sequences <= room / 12 && index.bounds <= room / 8;
  const std::uint64_t needed = counted ? index.sequences * 12 + index.bounds * 8 : 0;
  if (!counted || needed > room) {
    fail(Status::input, "{}: {} bytes are too few for {} sequences and {} document bounds: copy it whole", file.name(),
         file.size(), index.sequences, index.bounds);
  }
  if (index.sequences > 0 && needed + index.sequences == room) {
    fail(Status::input, "{}: has modes of its sequences: multimodal data sets aren't supported", file.name());
  }
  if (needed != room) {
    fail(Status::input, "{}: byte {}: {} bytes more than {} sequences and {} document bounds take: damaged",
         file.name(), kHeaderBytes + needed, room - needed, index.sequences, index.bounds);
  }
  if (index.bounds < 1) fail(Status::input, "{}: byte 26: no document bounds, expected at least one", file.name());
  return index;
}

template <class Token>
std::int64_t widen(const char* bytes) {
  Token value{};
  std::memcpy(&value, bytes, sizeof value);
  return static_cast<std::int64_t>(value);
}

class Conversion {
 public:
  Conversion(const MegatronOptions& options, std::uint64_t vocabulary, const std::string& digest)
      : index_file_(options.prefix + ".idx"),
        tokens_file_(options.prefix + ".bin"),
        index_(read_header(index_file_)),
        vocabulary_(vocabulary),
        lengths_(index_file_, kHeaderBytes, index_.sequences),
        pointers_(index_file_, kHeaderBytes + index_.sequences * 4, index_.sequences),
        bounds_(index_file_, kHeaderBytes + index_.sequences * 12, index_.bounds),
        shards_({options.output, source_name(options.output, options.source), digest, vocabulary,
                 options.max_shard_bytes, options.overwrite}) {}

  PreprocessReport run() {
    if (const std::int64_t first = bounds_.next(); first != 0) {
      fail(Status::input, "{}: byte {}: the first document begins with sequence {}, expected 0", index_file_.name(),
           kHeaderBytes + index_.sequences * 12, first);
    }
    std::uint64_t sequence = 0;
    for (std::uint64_t document = 0; document + 1 < index_.bounds; ++document) {
      const std::uint64_t byte = bounds_.byte();
      const std::int64_t end = bounds_.next();
      if (end < static_cast<std::int64_t>(sequence) || static_cast<std::uint64_t>(end) > index_.sequences) {
        fail(Status::input, "{}: byte {}: document {} ends with sequence {}, expected {} to {}", index_file_.name(),
             byte, document, end, sequence, index_.sequences);
      }
      for (; sequence < static_cast<std::uint64_t>(end); ++sequence) copy_sequence(sequence);
      shards_.end_document();
      ++report_.documents;
      if (document % 256 == 0) progress_.show_bytes("converting", place_, tokens_file_.size());
    }
    if (sequence != index_.sequences) {
      fail(Status::input, "{}: {} of {} sequences belong to no document: damaged", index_file_.name(),
           index_.sequences - sequence, index_.sequences);
    }
    if (place_ != tokens_file_.size()) {
      fail(Status::input, "{}: {} bytes, but the sequences of {} end at {}: copy both whole", tokens_file_.name(),
           tokens_file_.size(), index_file_.name(), place_);
    }
    if (report_.documents == 0) fail(Status::input, "{}: has no document: nothing was written", index_file_.name());
    progress_.clear();
    report_.shards = shards_.commit();
    report_.input_bytes = index_file_.size() + tokens_file_.size();
    report_.seconds = progress_.seconds();
    return report_;
  }

 private:
  void copy_sequence(std::uint64_t sequence) {
    const std::uint64_t length_byte = lengths_.byte();
    const std::int32_t length = lengths_.next();
    const std::uint64_t pointer_byte = pointers_.byte();
    const std::int64_t pointer = pointers_.next();
    if (length < 0) {
      fail(Status::input, "{}: byte {}: sequence {} has {} tokens: damaged", index_file_.name(), length_byte, sequence,
           length);
    }
    if (pointer < 0 || static_cast<std::uint64_t>(pointer) != place_) {
      fail(Status::input, "{}: byte {}: sequence {} begins at byte {} of the .bin, expected {}", index_file_.name(),
           pointer_byte, sequence, pointer, place_);
    }
    if (static_cast<std::uint64_t>(length) > (tokens_file_.size() - place_) / index_.token_bytes) {
      fail(Status::input, "{}: {} bytes, too few for the {} tokens of sequence {} from byte {} on: copy it whole",
           tokens_file_.name(), tokens_file_.size(), length, sequence, place_);
    }
    for (auto left = static_cast<std::uint64_t>(length); left > 0;) {
      const std::uint64_t count = std::min<std::uint64_t>(left, kBlock);
      copy_tokens(count);
      left -= count;
    }
  }

  void copy_tokens(std::uint64_t count) {
    bytes_.resize(count * index_.token_bytes);
    ids_.resize(count);
    tokens_file_.read(bytes_.data(), bytes_.size(), place_);
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::int64_t id = token(bytes_.data() + i * index_.token_bytes);
      if (id < 0 || static_cast<std::uint64_t>(id) >= vocabulary_) {
        fail(Status::input, "{}: byte {}: token id {}, expected 0 to {}: give the tokenizer that made it",
             tokens_file_.name(), place_ + i * index_.token_bytes, id, vocabulary_ - 1);
      }
      ids_[i] = static_cast<std::int32_t>(id);
    }
    shards_.add_tokens(ids_);
    place_ += bytes_.size();
    report_.tokens += count;
  }

  std::int64_t token(const char* bytes) const {
    switch (index_.type) {
      case 1:
        return widen<std::uint8_t>(bytes);
      case 2:
        return widen<std::int8_t>(bytes);
      case 3:
        return widen<std::int16_t>(bytes);
      case 4:
        return widen<std::int32_t>(bytes);
      case 5:
        return widen<std::int64_t>(bytes);
      default:
        return widen<std::uint16_t>(bytes);
    }
  }

  InputFile index_file_, tokens_file_;
  Index index_;
  std::uint64_t vocabulary_;
  Table<std::int32_t> lengths_;
  Table<std::int64_t> pointers_, bounds_;
  ShardSet shards_;
  Progress progress_;
  PreprocessReport report_;
  std::uint64_t place_ = 0;  // in the .bin
  std::vector<char> bytes_;
  std::vector<std::int32_t> ids_;
};

}  // namespace

PreprocessReport convert_megatron(const MegatronOptions& options) {
  std::uint64_t vocabulary = options.vocabulary;
  std::string digest;
  if (options.tokenizer.empty() == (vocabulary == 0)) {
    fail(Status::usage, "--from-megatron {}: give either --tokenizer or --vocab-size, which bounds the ids",
         options.prefix);
  }
  if (!options.tokenizer.empty()) {
    const Tokenizer tokenizer(options.tokenizer);
    vocabulary = static_cast<std::uint64_t>(tokenizer.vocab_size());
    digest = tokenizer.digest();
  }
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max());
  if (vocabulary > kMost) fail(Status::usage, "--vocab-size {}: expected 1 to {}", vocabulary, kMost);
  return Conversion(options, vocabulary, digest).run();
}

}  // namespace dropcycle
