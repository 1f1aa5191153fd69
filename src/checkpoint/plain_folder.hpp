// A folder from elsewhere, whose files are opened by plain name. Links aren't followed but in the cache of Hugging
// Face's hub, whose folders models--ORGANIZATION--NAME/snapshots/REVISION hold links ../../blobs/DIGEST: there, to a
// regular file of that blobs folder.
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
  // A descriptor for reading, the caller's to close. Throws Error{input} for a name with a folder in it, another link
  // and whatever isn't a regular file.
  int open(const std::string& name) const;
  // A whole file of at most `max_bytes`. Throws as open(), and for a longer one.
  std::string read(const std::string& name, std::uint64_t max_bytes) const;

 private:
  // What open(2) gives for the blob that the link `name` names; -1 with errno ELOOP where it names none.
  int open_blob(const std::string& name) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace dropcycle
