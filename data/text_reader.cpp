#include "text_reader.hpp"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

constexpr std::size_t kBufferBytes = 1U << 18U;
constexpr std::size_t kExcerptBytes = 1024;

class PlainStream : public ByteStream {
 public:
  explicit PlainStream(const std::filesystem::path& path) : path_(path.string()) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0 || std::filesystem::is_directory(path)) {
      const char* reason = descriptor_ < 0 ? std::strerror(errno) : "it is a folder";
      fail(Status::input, "{}: can't be read: {}", path_, reason);
    }
    ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  ~PlainStream() override { ::close(descriptor_); }

  std::size_t read(char* out, std::size_t size) override {
    ssize_t got = 0;
    do {
      got = ::read(descriptor_, out, size);
    } while (got < 0 && errno == EINTR);
    if (got < 0) fail(Status::input, "{}: reading failed at byte {}: {}", path_, bytes_, std::strerror(errno));
    bytes_ += static_cast<std::uint64_t>(got);
    return static_cast<std::size_t>(got);
  }
  std::uint64_t file_bytes() const override { return bytes_; }

 private:
  std::string path_;
  int descriptor_ = -1;
  std::uint64_t bytes_ = 0;
};

// What decompressors share: the compressed bytes, a buffer at a time.
class CompressedStream : public ByteStream {
 public:
  explicit CompressedStream(const std::filesystem::path& path)
      : path_(path.string()), file_(path), input_(kBufferBytes) {}
  std::uint64_t file_bytes() const override { return file_.file_bytes(); }

 protected:
  std::size_t refill() { return file_.read(input_.data(), input_.size()); }
  [[noreturn]] void damaged(const char* reason) const {
    fail(Status::input, "{}: damaged compressed file near byte {} ({}): make it again or leave it out", path_,
         file_bytes(), reason);
  }

  std::string path_;
  PlainStream file_;
  std::vector<char> input_;
};

class GzipStream : public CompressedStream {
 public:
  explicit GzipStream(const std::filesystem::path& path) : CompressedStream(path) {
    require(inflateInit2(&state_, 15 + 16) == Z_OK, "zlib can't start");
  }
  ~GzipStream() override { inflateEnd(&state_); }

  std::size_t read(char* out, std::size_t size) override {
    state_.next_out = reinterpret_cast<Bytef*>(out);
    state_.avail_out = static_cast<uInt>(size);
    while (state_.avail_out == size) {
      if (state_.avail_in == 0) {
        state_.avail_in = static_cast<uInt>(refill());
        state_.next_in = reinterpret_cast<Bytef*>(input_.data());
        if (state_.avail_in == 0) {
          if (inside_) damaged("it ends early");
          break;
        }
      }
      if (!inside_) inflateReset(&state_);  // another member follows
      inside_ = true;
      const int result = inflate(&state_, Z_NO_FLUSH);
      if (result == Z_STREAM_END) {
        inside_ = false;
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        damaged(state_.msg != nullptr ? state_.msg : "zlib's data error");
      }
    }
    return size - state_.avail_out;
  }

 private:
  z_stream state_{};
  bool inside_ = false;  // a member has begun and not ended
};

class ZstdStream : public CompressedStream {
 public:
  explicit ZstdStream(const std::filesystem::path& path) : CompressedStream(path), state_(ZSTD_createDStream()) {
    require(state_ != nullptr, "Zstandard can't start");
  }
  ~ZstdStream() override { ZSTD_freeDStream(state_); }

  std::size_t read(char* out, std::size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      if (window_.pos == window_.size) {
        window_ = {input_.data(), refill(), 0};
        if (window_.size == 0) {
          if (inside_) damaged("it ends early");
          break;
        }
      }
      const std::size_t result = ZSTD_decompressStream(state_, &output, &window_);
      if (ZSTD_isError(result) != 0) damaged(ZSTD_getErrorName(result));
      inside_ = result != 0;
    }
    return output.pos;
  }

 private:
  ZSTD_DStream* state_;
  ZSTD_inBuffer window_{nullptr, 0, 0};
  bool inside_ = false;
};

}  // namespace

std::unique_ptr<ByteStream> open_stream(const std::filesystem::path& path) {
  if (path.extension() == ".gz") return std::make_unique<GzipStream>(path);
  if (path.extension() == ".zst") return std::make_unique<ZstdStream>(path);
  return std::make_unique<PlainStream>(path);
}

LineReader::LineReader(const std::filesystem::path& path, std::uint64_t max_line_bytes, bool whole_file)
    : stream_(open_stream(path)), max_line_bytes_(max_line_bytes), whole_file_(whole_file), buffer_(kBufferBytes) {
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  while (end_ < kByteOrderMark.size()) {
    const std::size_t got = stream_->read(buffer_.data() + end_, buffer_.size() - end_);
    if (got == 0) break;
    end_ += got;
  }
  if (std::string_view(buffer_.data(), end_).starts_with(kByteOrderMark)) begin_ = byte_ = kByteOrderMark.size();
}

bool LineReader::refill() {
  begin_ = 0;
  end_ = stream_->read(buffer_.data(), buffer_.size());
  return end_ > 0;
}

bool LineReader::next(std::string& out, Line& line) {
  if (begin_ == end_ && !refill()) return false;
  line = {++number_, byte_, 0, false};
  const std::size_t start = out.size();
  for (bool ended = false; !ended;) {
    const char* from = buffer_.data() + begin_;
    const std::size_t rest = end_ - begin_;
    const void* found = whole_file_ ? nullptr : std::memchr(from, '\n', rest);
    const std::size_t count =
        found != nullptr ? static_cast<std::size_t>(static_cast<const char*>(found) - from) : rest;
    line.size += count;
    begin_ += count + (found != nullptr ? 1 : 0);
    byte_ += count + (found != nullptr ? 1 : 0);
    ended = found != nullptr;
    if (!line.too_long) out.append(from, count);
    if (!line.too_long && line.size > max_line_bytes_) {
      line.too_long = true;
      out.resize(start + std::min(kExcerptBytes, out.size() - start));
    }
    if (!ended && !refill()) ended = true;
  }
  return true;
}

bool is_json_lines(std::filesystem::path path) {
  if (path.extension() == ".gz" || path.extension() == ".zst") path = path.stem();
  const auto extension = path.extension();
  return extension == ".jsonl" || extension == ".json" || extension == ".ndjson";
}

}  // namespace dropcycle
