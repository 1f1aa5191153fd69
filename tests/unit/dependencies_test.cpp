// The house's order: dependencies point one way, and files stay short enough to read.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path kRoot = DROPCYCLE_SOURCE_DIR;

// What each library may include beside itself.
std::map<std::string, std::set<std::string>> allowed_dependencies() {
  const std::vector<std::vector<std::string>> order = {
      {"core"},  {"device"},         {"ops"}, {"parallel"}, {"layers"}, {"model"}, {"upcycle", "optim", "checkpoint"},
      {"train"}, {"eval", "report"}, {"cli"}};
  std::map<std::string, std::set<std::string>> allowed;
  std::set<std::string> below;
  for (const auto& level : order) {
    for (const std::string& library : level) {
      allowed[library] = below;
      if (library == "train" || library == "eval" || library == "report" || library == "cli") {
        allowed[library].insert("data");
      }
    }
    below.insert(level.begin(), level.end());
  }
  allowed["data"] = {"core"};
  return allowed;
}

// The library that a source file belongs to: include/dropcycle/X, src/X, parallel, data.
std::string library_of(const fs::path& file) {
  const fs::path relative = fs::relative(file, kRoot);
  auto part = relative.begin();
  if (*part == "include") std::advance(part, 2);
  if (*part == "src") ++part;
  return part->string();
}

bool is_source(const fs::path& file) {
  static const std::set<std::string> kEndings = {".hpp", ".cpp", ".cu", ".cuh"};
  return kEndings.contains(file.extension().string());
}

std::vector<fs::path> sources_below(const std::vector<std::string>& folders) {
  std::vector<fs::path> files;
  for (const std::string& folder : folders) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      if (entry.is_regular_file() && is_source(entry.path())) files.push_back(entry.path());
    }
  }
  return files;
}

std::vector<std::string> lines_of(const fs::path& file) {
  std::vector<std::string> lines;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// Libraries named in the quoted includes of `lines` that `library` may not use, as "line: library".
std::vector<std::string> violations(const std::string& library, const fs::path& file,
                                    const std::vector<std::string>& lines) {
  static const auto allowed = allowed_dependencies();
  constexpr std::string_view kInclude = "#include\"";
  std::vector<std::string> found;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    std::string line = lines[i];
    std::erase_if(line, [](char c) { return c == ' ' || c == '\t'; });
    if (!line.starts_with(kInclude)) continue;
    const std::string path = line.substr(kInclude.size(), line.rfind('"') - kInclude.size());
    const std::string prefix = "dropcycle/";
    std::string used;
    if (path.starts_with(prefix)) {
      used = path.substr(prefix.size(), path.find('/', prefix.size()) - prefix.size());
    } else {
      const fs::path target = (file.parent_path() / path).lexically_normal();
      used = library_of(target);
    }
    if (used != library && !allowed.at(library).contains(used)) found.push_back(std::to_string(i + 1) + ": " + used);
  }
  return found;
}

}  // namespace

TEST_CASE("no library includes one to its right") {
  const auto allowed = allowed_dependencies();
  const auto files = sources_below({"include", "src", "parallel", "data"});
  REQUIRE(files.size() > 30);
  for (const fs::path& file : files) {
    CAPTURE(file.string());
    const std::string library = library_of(file);
    REQUIRE(allowed.contains(library));
    for (const std::string& violation : violations(library, file, lines_of(file))) FAIL_CHECK(violation);
  }
}

TEST_CASE("the check finds a wrong include") {
  const fs::path file = kRoot / "src" / "layers" / "x.cpp";
  CHECK(violations("layers", file, {"#include \"dropcycle/core/error.hpp\"", "#include \"y.hpp\"", "#include <map>"})
            .empty());
  CHECK(violations("layers", file, {"#include \"dropcycle/train/metrics.hpp\""}) ==
        std::vector<std::string>{"1: train"});
  CHECK(violations("layers", file, {"", "  # include \"../model/y.hpp\""}) == std::vector<std::string>{"2: model"});
  CHECK(violations("data", file, {"#include \"dropcycle/device/arena.hpp\""}).size() == 1);
  CHECK(violations("upcycle", file, {"#include \"dropcycle/checkpoint/checkpoint.hpp\""}).size() == 1);
  CHECK(violations("train", file, {"#include \"dropcycle/data/shard.hpp\""}).empty());
}

TEST_CASE("no source file is longer than 600 lines") {
  const auto files = sources_below({"include", "src", "parallel", "data", "tests"});
  for (const fs::path& file : files) {
    CAPTURE(file.string());
    CHECK(lines_of(file).size() <= 600);
  }
}
