#include <glob.h>

#include "dropcycle/core/error.hpp"
#include "dropcycle/data/shard.hpp"

namespace dropcycle {

std::vector<std::filesystem::path> expand_globs(const std::vector<std::string>& patterns) {
  std::vector<std::filesystem::path> paths;
  for (const std::string& pattern : patterns) {
    if (pattern.find_first_of("*?[") == std::string::npos || std::filesystem::exists(pattern)) {
      paths.emplace_back(pattern);
      continue;
    }
    glob_t found{};
    const int result = ::glob(pattern.c_str(), 0, nullptr, &found);
    for (std::size_t i = 0; result == 0 && i < found.gl_pathc; ++i) paths.emplace_back(found.gl_pathv[i]);
    ::globfree(&found);
    if (result != 0) fail(Status::input, "{}: no file has such a name: check the pattern and the folder", pattern);
  }
  return paths;
}

}  // namespace dropcycle
