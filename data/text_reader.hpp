// Text files, plain or compressed, read line by line with bounded memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace dropcycle {

// The decompressed bytes of a file: .gz by zlib, .zst by Zstandard, anything else as it is.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Up to `size` bytes; 0 at the end. Throws Error{input} naming the file if it is damaged or cut short.
  virtual std::size_t read(char* out, std::size_t size) = 0;
  // How far into the file itself (compressed, where it is) reading has come.
  virtual std::uint64_t file_bytes() const = 0;
};
// Throws Error{input} if the file can't be read.
std::unique_ptr<ByteStream> open_stream(const std::filesystem::path& path);

struct Line {
  std::uint64_t number = 0;  // from 1
  std::uint64_t byte = 0;    // where it begins in the decompressed file
  std::uint64_t size = 0;    // without the line break, also where it was too long to be kept
  bool too_long = false;
};

class LineReader {
 public:
  // `whole_file`: the file is one line.
  LineReader(const std::filesystem::path& path, std::uint64_t max_line_bytes, bool whole_file);
  // Appends the next line to `out`; of a line that is too long only its first kilobyte. False at the end of the file.
  bool next(std::string& out, Line& line);
  std::uint64_t file_bytes() const { return stream_->file_bytes(); }

 private:
  bool refill();

  std::unique_ptr<ByteStream> stream_;
  std::uint64_t max_line_bytes_;
  bool whole_file_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0, end_ = 0;
  std::uint64_t number_ = 0, byte_ = 0;
};

// Whether the name says JSON lines: .jsonl, .json or .ndjson, perhaps followed by .gz or .zst.
bool is_json_lines(std::filesystem::path path);

}  // namespace dropcycle
