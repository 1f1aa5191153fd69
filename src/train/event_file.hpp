// TensorBoard's event files: a sequence of TFRecords, each a serialized tensorflow.Event.
//   record = length (uint64), masked CRC of those 8 bytes (uint32), data, masked CRC of data (uint32); little-endian
//   masked = rotate_right(crc32c, 15) + 0xa282ead8
//   Event  = {1: wall_time double, 2: step int64, 3: file_version string, 5: Summary, 7: SessionLog}
//   Summary = {repeated 1: Value}, Value = {1: tag string, 2: simple_value float}; SessionLog = {1: status, START = 1}
// Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, .../framework/summary.proto.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "append_file.hpp"

namespace dropcycle {

// CRC-32C (Castagnoli), reflected, as in RFC 3720.
std::uint32_t crc32c(std::string_view bytes);
std::string tf_record(std::string_view data);

struct Scalar {
  std::string tag;
  double value;
};

class EventFile {
 public:
  // A new file in `folder` (created if needed) whose name sorts after those that are there. `first_step` > 0 tells
  // TensorBoard to forget earlier files' points from that step on.
  EventFile(const std::filesystem::path& folder, std::int64_t first_step);
  // Scalars that aren't finite are left out.
  void add(std::int64_t step, std::span<const Scalar> scalars);

 private:
  AppendFile file_;
};

}  // namespace dropcycle
