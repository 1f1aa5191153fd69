#include "slice_file.hpp"

#include <utility>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"

namespace dropcycle {

SliceFile::SliceFile(std::filesystem::path path, const std::vector<SliceSpec>& slices, const FilePlan& plan)
    : path_(std::move(path)), slices_(slices), plan_(plan), progress_(slices.size()) {
  descriptor_ = file_system().create(path_);
  try {
    file_system().truncate(descriptor_, plan_.size_bytes, path_);
    for (const FilePlan::Region& region : plan_.structure) {
      file_system().write(descriptor_, region.bytes.data(), region.bytes.size(), region.offset, path_);
    }
  } catch (...) {
    discard();
    throw;
  }
}

SliceFile::~SliceFile() {
  if (!finished_) discard();
}

void SliceFile::discard() {
  try {
    if (descriptor_ >= 0) file_system().close(std::exchange(descriptor_, -1), path_);
  } catch (const Error&) {  // the file goes anyway
  }
  try {
    file_system().remove_all(path_);
  } catch (const Error&) {  // what can't be removed stays under a temporary name
  }
}

void SliceFile::write(std::size_t index, const void* data) {
  append(index, data, static_cast<std::size_t>(slices_[index].size_bytes()));
}

void SliceFile::append(std::size_t index, const void* data, std::size_t size) {
  Progress& progress = progress_[index];
  const auto all = static_cast<std::size_t>(slices_[index].size_bytes());
  require(size <= all - progress.bytes, "{}: more data for {} than its shape holds", path_.string(),
          plan_.datasets[index]);
  if (!progress.digester) progress.digester.emplace();
  progress.digester->update(data, size);
  file_system().write(descriptor_, data, size, plan_.offsets[index] + progress.bytes, path_);
  progress.bytes += size;
  if (progress.bytes < all) return;
  progress.digest = progress.digester->finish();
  progress.digester.reset();
}

Manifest SliceFile::finish() {
  file_system().sync(descriptor_, path_);
  file_system().close(std::exchange(descriptor_, -1), path_);
  Digester structure;
  for (const FilePlan::Region& region : plan_.structure) structure.update(region.bytes.data(), region.bytes.size());
  Manifest part;
  part.files.push_back({path_.filename().string(), plan_.size_bytes, structure.finish()});
  for (std::size_t i = 0; i < slices_.size(); ++i) {
    const SliceSpec& slice = slices_[i];
    const std::string& digest = progress_[i].digest;
    require(!digest.empty(), "{}: {} was never written", path_.string(), plan_.datasets[i]);
    part.parameters.push_back({slice.kind,
                               slice.name,
                               slice.dtype,
                               slice.global_shape,
                               {{0, slice.offset, slice.shape, plan_.datasets[i], plan_.offsets[i], digest}}});
  }
  finished_ = true;
  return part;
}

}  // namespace dropcycle
