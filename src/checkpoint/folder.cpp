// The folders of a run: which checkpoints there are, which one to load, which ones to remove.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/log.hpp"
#include "huggingface_folder.hpp"
#include "manifest.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kPrefix = "step_";

// The step in "step_00000120", -1 for any other name.
std::int64_t step_of(const std::string& name) {
  std::int64_t step = -1;
  if (!name.starts_with(kPrefix)) return -1;
  const char* end = name.data() + name.size();
  const auto [stop, code] = std::from_chars(name.data() + kPrefix.size(), end, step);
  return code == std::errc() && stop == end && checkpoint_name(step) == name ? step : -1;
}

// What ended one rank's attempt to load: nothing, damage (try the next checkpoint) or anything else (give up).
struct Attempt {
  char outcome = 'o';  // o: ok, d: damaged, x: other error
  Status status = Status::ok;
  std::string message;
};

Attempt attempt_load(const fs::path& folder, const std::function<void(Checkpoint&)>& load) {
  try {
    Checkpoint checkpoint = Checkpoint::open(folder);
    load(checkpoint);
    return {};
  } catch (const Error& error) {
    return {error.status() == Status::input ? 'd' : 'x', error.status(), error.what()};
  }
}

// The first message of a rank with the given outcome.
const std::string* find_outcome(const std::vector<std::string>& texts, char outcome) {
  const auto place = std::ranges::find_if(texts, [&](const std::string& text) { return text.at(0) == outcome; });
  return place == texts.end() ? nullptr : &*place;
}

}  // namespace

std::string checkpoint_name(std::int64_t step) { return fmt::format("{}{:08}", kPrefix, step); }

std::vector<fs::path> list_checkpoints(const fs::path& run_folder) {
  std::vector<std::pair<std::int64_t, fs::path>> found;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(run_folder, code)) {
    const std::int64_t step = step_of(entry.path().filename().string());
    if (step >= 0) found.emplace_back(step, entry.path());
  }
  std::ranges::sort(found, std::greater<>());
  std::vector<fs::path> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

fs::path find_checkpoint(const fs::path& path) {
  if (fs::exists(path / kManifestName) || is_huggingface(path)) return path;
  if (!fs::is_directory(path)) {
    fail(Status::input, "{}: no such folder; expected a checkpoint, a run folder or a Hugging Face folder",
         path.string());
  }
  const std::vector<fs::path> candidates = list_checkpoints(path);
  for (const fs::path& candidate : candidates) {
    try {
      Checkpoint::open(candidate);
      return candidate;
    } catch (const Error& error) {
      log_warning("{}: skipped: {}", candidate.string(), error.what());
    }
  }
  fail(Status::input, "{}: holds no checkpoint that can be loaded ({} damaged); expected {} or step_<number> folders",
       path.string(), candidates.size(), kManifestName);
}

std::optional<fs::path> load_newest(const fs::path& run_folder, const RankGroup& ranks,
                                    const std::function<void(Checkpoint&)>& load) {
  // Rank 0's list counts, so that all ranks try the same folders.
  std::string names;
  if (ranks.rank == 0) {
    for (const fs::path& path : list_checkpoints(run_folder)) names += path.filename().string() + "\n";
  }
  names = ranks.all_gather_text(names).front();
  if (names.empty()) return std::nullopt;
  std::size_t tried = 0;
  for (std::size_t begin = 0; begin < names.size(); begin = names.find('\n', begin) + 1) {
    const fs::path folder = run_folder / names.substr(begin, names.find('\n', begin) - begin);
    const Attempt mine = attempt_load(folder, load);
    const auto texts = ranks.all_gather_text(mine.outcome + mine.message);
    if (mine.outcome == 'x') throw Error(mine.status, mine.message);
    if (const std::string* other = find_outcome(texts, 'x')) fail(Status::peer, "another rank: {}", other->substr(1));
    const std::string* damage = find_outcome(texts, 'd');
    if (damage == nullptr) return folder;
    if (ranks.rank == 0) log_warning("{}: skipped: {}", folder.string(), damage->substr(1));
    ++tried;
  }
  fail(Status::input,
       "{}: none of its {} checkpoints can be loaded: repair one, or choose another output folder to start afresh",
       run_folder.string(), tried);
}

void apply_retention(const fs::path& run_folder, std::int64_t step, const CheckpointConfig& policy) {
  std::int64_t kept = 0;
  const auto remove = [](const fs::path& path) {
    fs::path doomed = path;
    if (path.extension() != ".tmp") {  // a checkpoint that is being removed isn't one any more
      doomed += ".tmp";
      file_system().rename(path, doomed);
    }
    file_system().remove_all(doomed);
  };
  for (const fs::path& path : list_checkpoints(run_folder)) {
    const std::int64_t its_step = step_of(path.filename().string());
    if (its_step > step) continue;
    const bool milestone = policy.keep_every > 0 && its_step % policy.keep_every == 0;
    if (kept++ < policy.keep_last || policy.keep_last <= 0 || milestone) continue;
    remove(path);
  }
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(run_folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(".tmp")) leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) remove(path);
}

}  // namespace dropcycle
