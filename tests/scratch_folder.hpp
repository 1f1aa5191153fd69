// A folder of this test process, gone when it ends. DROPCYCLE_TEST_FOLDER names one that stays, for tests that look at
// files with another program.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace dropcycle {

inline const std::filesystem::path& scratch_folder() {
  struct Folder {
    const char* kept = std::getenv("DROPCYCLE_TEST_FOLDER");
    std::filesystem::path path =
        kept != nullptr ? std::filesystem::path(kept)
                        : std::filesystem::temp_directory_path() / ("dropcycle_test." + std::to_string(::getpid()));
    Folder() { std::filesystem::create_directories(path); }
    ~Folder() {
      std::error_code ignored;
      if (kept == nullptr) std::filesystem::remove_all(path, ignored);
    }
  };
  static const Folder folder;
  return folder.path;
}

}  // namespace dropcycle
