// One rank's HDF5 file while it is written.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dropcycle/core/digest.hpp"
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
  // All of a slice's data.
  void write(std::size_t index, const void* data);
  // Its next `size` bytes.
  void append(std::size_t index, const void* data, std::size_t size);
  // Syncs and closes. The manifest of this file alone.
  Manifest finish();

 private:
  void discard();

  std::filesystem::path path_;
  const std::vector<SliceSpec>& slices_;
  const FilePlan& plan_;
  struct Progress {
    std::size_t bytes = 0;  // written so far
    std::optional<Digester> digester;
    std::string digest;  // of the whole, once it is there
  };
  std::vector<Progress> progress_;
  int descriptor_ = -1;
  bool finished_ = false;
};

}  // namespace dropcycle
