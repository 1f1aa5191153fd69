// A folder from elsewhere, whose files are opened by plain name and never through a link.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace dropcycle {

class PlainFolder {
 public:
  // Throws Error{input} if there is no such folder.
  explicit PlainFolder(std::filesystem::path path);
  ~PlainFolder();
  PlainFolder(const PlainFolder&) = delete;
  PlainFolder& operator=(const PlainFolder&) = delete;

  // Whether there is anything of that name.
  bool has(const std::string& name) const;
  // A descriptor for reading, the caller's to close. Throws Error{input} for a name with a folder in it, a link and
  // whatever isn't a regular file.
  int open(const std::string& name) const;
  // A whole file of at most `max_bytes`. Throws as open(), and for a longer one.
  std::string read(const std::string& name, std::uint64_t max_bytes) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace dropcycle
