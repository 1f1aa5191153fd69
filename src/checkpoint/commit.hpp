// The steps around a save that both writers share.
#pragma once

#include <filesystem>
#include <string>

#include "manifest.hpp"

namespace dropcycle {

// "rank_00003.h5".
std::string rank_file_name(int rank);
// `folder` + ".tmp".
std::filesystem::path temporary_folder(const std::filesystem::path& folder);
// An empty temporary folder for a save. Throws Error{storage}.
void prepare_folder(const std::filesystem::path& temporary);
// Adds the versions of dropcycle, HDF5 and the compiler to manifest.info and writes the manifest. Throws
// Error{storage}.
void write_manifest(Manifest manifest, const std::filesystem::path& folder);
// write_manifest() into the temporary folder, and gives the folder its name, replacing one that is there. Throws
// Error{storage}.
void commit_folder(Manifest manifest, const std::filesystem::path& temporary, const std::filesystem::path& folder);

// A new folder that is written under a temporary name. Without commit() the destructor removes it.
class OutputFolder {
 public:
  // Throws Error{usage} if the folder exists and isn't empty, Error{storage} if it can't be written.
  explicit OutputFolder(const std::filesystem::path& folder);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  const std::filesystem::path& temporary() const { return temporary_; }
  // Gives it its name, for good.
  void commit();

 private:
  std::filesystem::path folder_, temporary_;
  bool committed_ = false;
};

// Removes a folder; a failure to do so is only logged.
void remove_quietly(const std::filesystem::path& folder);

}  // namespace dropcycle
