#include "dropcycle/core/file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_call(const char* call, const fs::path& path, std::uint64_t bytes_needed = 0) {
  const int code = errno;
  std::string room;
  if (code == ENOSPC || code == EDQUOT) {
    struct statvfs status {};
    std::uint64_t bytes_free = 0;
    if (statvfs(path.parent_path().empty() ? "." : path.parent_path().c_str(), &status) == 0) {
      bytes_free = static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
    }
    room =
        fmt::format(" ({} bytes needed, {} free): free some space or choose another folder", bytes_needed, bytes_free);
  }
  fail(Status::storage, "{}: {} failed: {}{}", path.string(), call, std::strerror(code), room);
}

FileSystem default_file_system;
FileSystem* current_file_system = &default_file_system;

}  // namespace

int FileSystem::create(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) fail_call("open for writing", path);
  return descriptor;
}

void FileSystem::write(int descriptor, const void* data, std::size_t size, std::uint64_t offset, const fs::path& path) {
  // Larger pieces make Linux's page cache take its memory in blocks of up to 2 MiB. Those are what a virtual machine
  // gives back to its host when they are free, and taking them again from it costs seconds a GiB.
  constexpr std::size_t kPiece = 256 << 10;
  const auto* bytes = static_cast<const char*>(data);
  for (std::size_t done = 0; done < size;) {
    const std::size_t piece = std::min(kPiece, size - done);
    const ssize_t written = ::pwrite(descriptor, bytes + done, piece, static_cast<off_t>(offset + done));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_call("write", path, size - done);
    }
    done += static_cast<std::size_t>(written);
  }
#ifdef SYNC_FILE_RANGE_WRITE
  // A large piece goes on its way to the disk now, so that sync() finds less to wait for. Only a hint: sync() reports.
  constexpr std::size_t kLarge = 1 << 20;
  if (size >= kLarge) {
    ::sync_file_range(descriptor, static_cast<off64_t>(offset), static_cast<off64_t>(size), SYNC_FILE_RANGE_WRITE);
  }
#endif
}

void FileSystem::truncate(int descriptor, std::uint64_t size, const fs::path& path) {
  if (::ftruncate(descriptor, static_cast<off_t>(size)) != 0) fail_call("truncate", path, size);
}

void FileSystem::sync(int descriptor, const fs::path& path) {
  if (::fsync(descriptor) != 0) fail_call("fsync", path);
}

void FileSystem::close(int descriptor, const fs::path& path) {
  if (::close(descriptor) != 0) fail_call("close", path);
}

void FileSystem::rename(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_call("rename", from);
}

void FileSystem::sync_directory(const fs::path& directory) {
  const fs::path target = directory.empty() ? fs::path(".") : directory;
  const int descriptor = ::open(target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_call("open", target);
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  errno = code;
  if (result != 0) fail_call("fsync", target);
}

void FileSystem::remove_all(const fs::path& path) {
  std::error_code code;
  fs::remove_all(path, code);
  if (code) fail(Status::storage, "{}: removing failed: {}", path.string(), code.message());
}

FileSystem& file_system() { return *current_file_system; }

FileSystem* set_file_system(FileSystem* replacement) {
  FileSystem* previous = current_file_system;
  current_file_system = replacement == nullptr ? &default_file_system : replacement;
  return previous;
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), temporary_(path_.string() + ".tmp") {
  descriptor_ = file_system().create(temporary_);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!renamed_) ::unlink(temporary_.c_str());
}

void AtomicFile::append(const void* data, std::size_t size) {
  file_system().write(descriptor_, data, size, size_, temporary_);
  size_ += size;
}

void AtomicFile::commit() {
  file_system().sync(descriptor_, temporary_);
  file_system().close(std::exchange(descriptor_, -1), temporary_);  // a close that fails has closed
  file_system().rename(temporary_, path_);
  renamed_ = true;
  file_system().sync_directory(path_.parent_path());
}

void write_file(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.append(content);
  file.commit();
}

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail(Status::input, "{}: can't be read: {}", path.string(), std::strerror(errno));
  if (fs::is_directory(path)) fail(Status::input, "{}: is a folder, expected a file", path.string());
  std::ostringstream content;
  content << stream.rdbuf();
  if (stream.bad()) fail(Status::input, "{}: reading failed: {}", path.string(), std::strerror(errno));
  return std::move(content).str();
}

void read_at(int descriptor, void* data, std::size_t size, std::uint64_t offset, const fs::path& path) {
  auto* bytes = static_cast<char*>(data);
  for (std::size_t done = 0; done < size;) {
    const ssize_t got = ::pread(descriptor, bytes + done, size - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      fail(Status::input, "{}: reading failed at byte {}: {}", path.string(), offset + done, std::strerror(errno));
    if (got == 0) {
      fail(Status::input, "{}: ends at byte {}, but bytes {} to {} were expected: the file is truncated", path.string(),
           offset + done, offset, offset + size);
    }
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace dropcycle
