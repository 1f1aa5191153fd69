// The only way to disk. Every write, fsync, rename and unlink of the program goes through FileSystem, so that tests
// can make any of them fail or tear.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace dropcycle {

// The operations, one virtual function each; the default implementation calls POSIX. Each returns normally or throws
// Error{storage} with path, operation, errno's text and, for a full disk, the bytes needed and free.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // open(2) for reading and writing, created with mode 0644 and truncated. Returns the descriptor.
  virtual int create(const std::filesystem::path& path);
  // Writes all bytes at `offset`.
  virtual void write(int descriptor, const void* data, std::size_t size, std::uint64_t offset,
                     const std::filesystem::path& path);
  virtual void truncate(int descriptor, std::uint64_t size, const std::filesystem::path& path);
  virtual void sync(int descriptor, const std::filesystem::path& path);
  virtual void close(int descriptor, const std::filesystem::path& path);
  virtual void rename(const std::filesystem::path& from, const std::filesystem::path& to);
  virtual void sync_directory(const std::filesystem::path& directory);
  virtual void remove_all(const std::filesystem::path& path);
};

// The file system in use; tests replace it. Never null.
FileSystem& file_system();
// Returns the previous one. `replacement` null restores the default.
FileSystem* set_file_system(FileSystem* replacement);

// A file under `path + ".tmp"` until commit(): write, sync, close, rename, sync of the folder. Without commit() the
// destructor deletes it.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void append(const void* data, std::size_t size);
  void append(std::string_view text) { append(text.data(), text.size()); }
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  bool renamed_ = false;
};

// Creates or replaces a file as a whole through AtomicFile.
void write_file(const std::filesystem::path& path, std::string_view content);
// Whole content; throws Error{input} naming path and reason.
std::string read_file(const std::filesystem::path& path);
// Reads exactly `size` bytes at `offset`; throws Error{input} if the file is shorter.
void read_at(int descriptor, void* data, std::size_t size, std::uint64_t offset, const std::filesystem::path& path);

}  // namespace dropcycle
