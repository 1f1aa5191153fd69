#include "plain_folder.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

// Never through a link, never waiting for a pipe's other end.
int open_plain(int folder, const std::string& name) {
  return ::openat(folder, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

}  // namespace

PlainFolder::PlainFolder(std::filesystem::path path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor_ < 0) fail(Status::input, "{}: the folder can't be opened: {}", path_.string(), std::strerror(errno));
}

PlainFolder::~PlainFolder() { ::close(descriptor_); }

bool PlainFolder::has(const std::string& name) const {
  struct stat status {};
  return ::fstatat(descriptor_, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
}

int PlainFolder::open_blob(const std::string& name) const {
  std::error_code code;
  const fs::path target = fs::read_symlink(path_ / name, code), snapshot = fs::canonical(path_, code);
  const fs::path model = snapshot.parent_path().parent_path(), blobs = model / "blobs";
  const bool cache =
      !code && snapshot.parent_path().filename() == "snapshots" && model.filename().string().starts_with("models--") &&
      target == fs::path("../../blobs") / target.filename() && target.has_filename() && target.filename() != "..";
  errno = ELOOP;
  if (!cache) return -1;
  const int folder = ::open(blobs.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder < 0) return -1;
  const int blob = open_plain(folder, target.filename());
  const int reason = errno;
  ::close(folder);
  errno = reason;
  return blob;
}

int PlainFolder::open(const std::string& name) const {
  const std::string path = (path_ / name).string();
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
    fail(Status::input, "{}: expected the plain name of a file in the folder", path);
  }
  int descriptor = open_plain(descriptor_, name);
  if (descriptor < 0 && errno == ELOOP) descriptor = open_blob(name);
  if (descriptor < 0 && errno == ELOOP) {
    fail(Status::input,
         "{}: is a symbolic link, which isn't followed but in the hub's cache, from models--*/snapshots/* to "
         "../../blobs/*: make a folder of plain files, with cp -rL, or by downloading with --local-dir",
         path);
  }
  if (descriptor < 0) fail(Status::input, "{}: can't be opened: {}", path, std::strerror(errno));
  struct stat status {};
  if (::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode)) return descriptor;
  ::close(descriptor);
  fail(Status::input, "{}: isn't a regular file", path);
}

std::string PlainFolder::read(const std::string& name, std::uint64_t max_bytes) const {
  const int descriptor = open(name);
  try {
    struct stat status {};
    if (::fstat(descriptor, &status) != 0 || static_cast<std::uint64_t>(status.st_size) > max_bytes) {
      fail(Status::input, "{}: has {} bytes, expected at most {}", (path_ / name).string(), status.st_size, max_bytes);
    }
    std::string text(static_cast<std::size_t>(status.st_size), '\0');
    read_at(descriptor, text.data(), text.size(), 0, path_ / name);
    ::close(descriptor);
    return text;
  } catch (...) {
    ::close(descriptor);
    throw;
  }
}

}  // namespace dropcycle
