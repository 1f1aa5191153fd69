// One rank's HDF5 file while it is written.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "hdf5_plan.hpp"
#include "manifest.hpp"

namespace dropcycle {

class SliceFile {
 public:
  // Creates the file and writes all but the slices' data. `plan` is plan_hdf5(slices).
  SliceFile(std::filesystem::path path, const std::vector<SliceSpec>& slices, const FilePlan& plan);
  // Removes the file unless finish() was called.
  ~SliceFile();
  SliceFile(const SliceFile&) = delete;
  SliceFile& operator=(const SliceFile&) = delete;
  void write(std::size_t index, const void* data);
  // Syncs and closes. The manifest of this file alone.
  Manifest finish();

 private:
  void discard();

  std::filesystem::path path_;
  const std::vector<SliceSpec>& slices_;
  const FilePlan& plan_;
  std::vector<std::string> digests_;
  int descriptor_ = -1;
  bool finished_ = false;
};

}  // namespace dropcycle
