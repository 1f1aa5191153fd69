// The bytes of an HDF5 file around its datasets, found without touching a disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dropcycle/checkpoint/writer.hpp"

namespace dropcycle {

struct FilePlan {
  struct Region {
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };
  std::vector<std::string> datasets;   // path of each slice's dataset
  std::vector<std::uint64_t> offsets;  // of each slice's data
  std::uint64_t size_bytes = 0;        // of the whole file
  std::vector<Region> structure;       // all bytes outside the slices, in order
};

// Has HDF5 lay out a file with one contiguous dataset per slice, on a driver that keeps what HDF5 writes in memory.
// Whoever writes plan.structure and the slices' data at plan.offsets has an HDF5 file. A slice has at least 1 element.
FilePlan plan_hdf5(const std::vector<SliceSpec>& slices);

// "1.10.8".
std::string hdf5_version();

}  // namespace dropcycle
