// A file that grows line by line and may fail to without stopping the run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace dropcycle {

class AppendFile {
 public:
  // Starts with `content`, which replaces what was there as a whole. Throws Error{storage}.
  AppendFile(std::filesystem::path path, std::string_view content);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Writes at the end. On failure warns (once until a write works again) and keeps the bytes for the next call.
  void append(std::string_view bytes);
  // Throws nothing either; a failure is a warning.
  void sync();

 private:
  void write_pending();

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::string pending_;
  bool warned_ = false;
};

}  // namespace dropcycle
