#include "commit.hpp"

#include <fmt/format.h>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/log.hpp"
#include "hdf5_plan.hpp"

namespace dropcycle {

namespace fs = std::filesystem;

std::string rank_file_name(int rank) { return fmt::format("rank_{:05}.h5", rank); }

fs::path temporary_folder(const fs::path& folder) { return folder.string() + ".tmp"; }

void prepare_folder(const fs::path& temporary) {
  if (fs::exists(temporary)) file_system().remove_all(temporary);
  std::error_code code;
  fs::create_directories(temporary, code);
  if (code) fail(Status::storage, "{}: creating the folder failed: {}", temporary.string(), code.message());
}

void write_manifest(Manifest manifest, const fs::path& folder) {
  manifest.info.versions["dropcycle"] = DROPCYCLE_VERSION;
  manifest.info.versions["hdf5"] = hdf5_version();
  manifest.info.versions["compiler"] = __VERSION__;
  const std::string text = to_text(manifest);
  parse_manifest(text, folder / kManifestName);  // what can't be read back isn't committed
  write_file(folder / kManifestName, text);
}

void commit_folder(Manifest manifest, const fs::path& temporary, const fs::path& folder) {
  write_manifest(std::move(manifest), temporary);
  if (fs::exists(folder)) {  // the same step again, after going on from an earlier one
    const fs::path replaced = folder.string() + ".replaced.tmp";
    if (fs::exists(replaced)) file_system().remove_all(replaced);
    file_system().rename(folder, replaced);
    file_system().rename(temporary, folder);
    file_system().sync_directory(folder.parent_path());
    remove_quietly(replaced);
    return;
  }
  file_system().rename(temporary, folder);
  file_system().sync_directory(folder.parent_path());
}

OutputFolder::OutputFolder(const fs::path& folder) : folder_(fs::absolute(folder).lexically_normal()) {
  std::error_code code;
  if (fs::exists(folder) && !fs::is_empty(folder, code)) {
    fail(Status::usage, "{}: the output folder isn't empty: choose another one or remove it", folder.string());
  }
  if (folder_.filename().empty()) folder_ = folder_.parent_path();  // a trailing slash
  temporary_ = temporary_folder(folder_);
  prepare_folder(temporary_);
}

OutputFolder::~OutputFolder() {
  if (!committed_) remove_quietly(temporary_);
}

void OutputFolder::commit() {
  if (fs::exists(folder_)) fs::remove(folder_);  // an empty folder
  file_system().rename(temporary_, folder_);
  committed_ = true;
  file_system().sync_directory(folder_.parent_path());
}

void remove_quietly(const fs::path& folder) {
  try {
    file_system().remove_all(folder);
  } catch (const Error& error) {
    log_warning("{}", error.what());
  }
}

}  // namespace dropcycle
