#include "append_file.hpp"

#include <unistd.h>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/log.hpp"

namespace dropcycle {

AppendFile::AppendFile(std::filesystem::path path, std::string_view content) : path_(std::move(path)) {
  // Renamed into place and kept open: a reader sees the old content or the new one, never a half.
  const std::filesystem::path temporary = path_.string() + ".tmp";
  descriptor_ = file_system().create(temporary);
  try {
    file_system().write(descriptor_, content.data(), content.size(), 0, temporary);
    file_system().sync(descriptor_, temporary);
    file_system().rename(temporary, path_);
  } catch (const Error&) {
    ::close(descriptor_);
    ::unlink(temporary.c_str());
    throw;
  }
  size_ = content.size();
}

AppendFile::~AppendFile() {
  write_pending();
  ::close(descriptor_);
}

void AppendFile::append(std::string_view bytes) {
  pending_ += bytes;
  write_pending();
}

void AppendFile::write_pending() {
  try {
    file_system().write(descriptor_, pending_.data(), pending_.size(), size_, path_);
    size_ += pending_.size();
    pending_.clear();
    warned_ = false;
  } catch (const Error& error) {
    if (!warned_) log_warning("{}; training goes on, the lines are kept for the next try", error.what());
    warned_ = true;
  }
}

void AppendFile::sync() {
  write_pending();
  try {
    file_system().sync(descriptor_, path_);
  } catch (const Error& error) {
    log_warning("{}; training goes on", error.what());
  }
}

}  // namespace dropcycle
