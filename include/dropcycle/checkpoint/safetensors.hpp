// safetensors files, as Hugging Face keeps weights:
//   8 bytes  N, little endian
//   N bytes  JSON: {"tensor": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__":
//   {}} the rest data; data_offsets count from its first byte
// https://github.com/huggingface/safetensors. Files are read as if somebody had made them up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dropcycle/core/dtype.hpp"

namespace dropcycle {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as in the header: "F32", "BF16", "F16", ...
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0, size_bytes = 0;  // of the data, in the file
};

// Longer headers are refused: some 150,000 tensors fit.
inline constexpr std::uint64_t kMaxJsonBytes = 16 << 20;

// "F32", "BF16", "F16" for f32, bf16, f16. Throws Error{internal} for others.
std::string_view safetensors_name(DType dtype);

// The entries of a header's JSON in the order of their data, of a file with `data_bytes` bytes after the header. Throws
// Error{input} that begins with `where`: not JSON, a key twice, sizes whose product overflows, a size that isn't the
// shape's and type's, data that overlaps, leaves a hole or ends before or after the file does.
std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view header, std::uint64_t data_bytes,
                                                       const std::string& where);
// Of an open file; `path` is for messages.
std::vector<SafetensorsEntry> read_safetensors_header(int descriptor, const std::filesystem::path& path);

// model.safetensors.index.json: tensor -> file. Throws Error{input} that begins with `where`: not JSON, a key twice, a
// file name with a folder in it or without the ending .safetensors.
std::map<std::string, std::string> parse_safetensors_index(std::string_view text, const std::string& where);

// Writes a file front to back.
class SafetensorsWriter {
 public:
  // Name, dtype and shape of each entry count; offsets are set here. Throws Error{storage}.
  SafetensorsWriter(std::filesystem::path path, std::vector<SafetensorsEntry> entries);
  // Closes the file; one that wasn't finished stays for the caller to remove.
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  // The next bytes of the data: that of the entries one after another.
  void append(const void* data, std::size_t size);
  // Syncs and closes. Throws Error{internal} unless all data is there.
  void finish();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t position_ = 0, end_ = 0;
};

}  // namespace dropcycle
