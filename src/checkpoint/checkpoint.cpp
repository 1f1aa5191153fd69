#include "dropcycle/checkpoint/checkpoint.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "dropcycle/core/convert.hpp"
#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "manifest.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kChunkBytes = 4 << 20;

// A slice and the wanted part in the same four dims (leading ones added), to copy what they share.
class Overlap {
 public:
  Overlap(const SliceEntry& slice, DType dtype, const ShardedTensor& out) : out_(&out), dtype_(dtype) {
    const int dims = slice.shape.dims();
    for (int dim = 0; dim < dims; ++dim) {
      const auto place = static_cast<std::size_t>(dim + Shape::kMaxDims - dims);
      const std::int64_t first = std::max(slice.offset[dim], out.offset[dim]);
      const std::int64_t last = std::min(slice.offset[dim] + slice.shape[dim], out.offset[dim] + out.local.shape[dim]);
      size_[place] = slice.shape[dim];
      out_size_[place] = out.local.shape[dim];
      first_[place] = first - slice.offset[dim];
      count_[place] = last - first;
      out_first_[place] = first - out.offset[dim];
    }
  }

  bool empty() const {
    return std::ranges::any_of(count_, [](std::int64_t count) { return count <= 0; });
  }
  // Whether slice and wanted part are the same box.
  bool exact() const { return size_ == count_ && out_size_ == count_; }
  // Elements [begin, end) of the slice that hold everything shared.
  std::pair<std::int64_t, std::int64_t> span() const {
    std::int64_t begin = 0, end = 0;
    for (std::size_t dim = 0; dim < size_.size(); ++dim) {
      begin = begin * size_[dim] + first_[dim];
      end = end * size_[dim] + first_[dim] + count_[dim] - 1;
    }
    return {begin, end + 1};
  }

  // Copies what elements [begin, end) of the slice, in `data`, have of the wanted part.
  void copy(const std::byte* data, std::int64_t begin, std::int64_t end) const {
    const std::int64_t width = size_[3];
    for (std::int64_t row = begin / width; row * width < end; ++row) {
      const std::array<std::int64_t, 3> at = {row / (size_[1] * size_[2]), row / size_[2] % size_[1], row % size_[2]};
      std::int64_t out_row = 0;
      bool inside = true;
      for (std::size_t dim = 0; dim < 3; ++dim) {
        inside = inside && at[dim] >= first_[dim] && at[dim] < first_[dim] + count_[dim];
        out_row = out_row * out_size_[dim] + at[dim] - first_[dim] + out_first_[dim];
      }
      if (!inside) continue;
      const std::int64_t from = std::max(begin, row * width + first_[3]);
      const std::int64_t to = std::min(end, row * width + first_[3] + count_[3]);
      if (from >= to) continue;
      const std::int64_t out_index = out_row * out_size_[3] + out_first_[3] + from - (row * width + first_[3]);
      convert(data + (from - begin) * size_bytes(dtype_), dtype_,
              static_cast<std::byte*>(out_->local.data) + out_index * size_bytes(out_->local.dtype), out_->local.dtype,
              to - from);
    }
  }

 private:
  using Dims = std::array<std::int64_t, Shape::kMaxDims>;
  static constexpr Dims kOnes = {1, 1, 1, 1};
  const ShardedTensor* out_;
  DType dtype_;
  Dims size_ = kOnes, out_size_ = kOnes, first_{}, count_ = kOnes, out_first_{};
};

// The digest of all bytes of a file that belong to no slice.
std::string structure_digest(int descriptor, const std::filesystem::path& path, std::uint64_t size_bytes,
                             std::vector<std::pair<std::uint64_t, std::uint64_t>> slices) {
  std::ranges::sort(slices);
  slices.emplace_back(size_bytes, size_bytes);
  Digester digester;
  std::vector<std::byte> buffer;
  std::uint64_t position = 0;
  for (const auto& [begin, end] : slices) {
    if (begin < position) fail(Status::input, "{}: slices overlap at byte {}", path.string(), begin);
    while (position < begin) {
      buffer.resize(std::min<std::uint64_t>(begin - position, kChunkBytes));
      read_at(descriptor, buffer.data(), buffer.size(), position, path);
      digester.update(buffer.data(), buffer.size());
      position += buffer.size();
    }
    position = end;
  }
  return digester.finish();
}

}  // namespace

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  const std::filesystem::path manifest_path = folder / kManifestName;
  Manifest manifest = parse_manifest(read_file(manifest_path), manifest_path);
  checkpoint.info_ = std::move(manifest.info);
  checkpoint.files_ = std::move(manifest.files);
  checkpoint.parameters_ = std::move(manifest.parameters);
  checkpoint.descriptors_.assign(checkpoint.files_.size(), -1);
  std::vector<std::vector<std::pair<std::uint64_t, std::uint64_t>>> ranges(checkpoint.files_.size());
  for (std::size_t i = 0; i < checkpoint.parameters_.size(); ++i) {
    const ParameterEntry& parameter = checkpoint.parameters_[i];
    const bool fresh = checkpoint.index_.try_emplace({parameter.kind, parameter.name}, i).second;
    if (!fresh) {
      fail(Status::input, "{}: {} {} stands there twice", manifest_path.string(), parameter.kind, parameter.name);
    }
    checkpoint.verified_.emplace_back(parameter.slices.size(), false);
    for (const SliceEntry& slice : parameter.slices) {
      const auto bytes = static_cast<std::uint64_t>(slice.shape.elements() * size_bytes(parameter.dtype));
      ranges[static_cast<std::size_t>(slice.file)].emplace_back(slice.byte_offset, slice.byte_offset + bytes);
    }
  }
  for (std::size_t i = 0; i < checkpoint.files_.size(); ++i) {
    const FileEntry& file = checkpoint.files_[i];
    const std::filesystem::path path = folder / file.name;
    const int descriptor = checkpoint.descriptor(static_cast<int>(i));
    if (structure_digest(descriptor, path, file.size_bytes, std::move(ranges[i])) != file.structure_digest) {
      fail(Status::input, "{}: damaged outside its tensors (its structure isn't what {} says); take another checkpoint",
           path.string(), kManifestName);
    }
  }
  return checkpoint;
}

Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;

Checkpoint& Checkpoint::operator=(Checkpoint&& other) noexcept {
  folder_ = std::move(other.folder_);
  info_ = std::move(other.info_);
  files_ = std::move(other.files_);
  parameters_ = std::move(other.parameters_);
  index_ = std::move(other.index_);
  verified_ = std::move(other.verified_);
  descriptors_.swap(other.descriptors_);
  return *this;
}

Checkpoint::~Checkpoint() {
  for (const int descriptor : descriptors_) {
    if (descriptor >= 0) ::close(descriptor);
  }
}

int Checkpoint::descriptor(int file) {
  int& descriptor = descriptors_[static_cast<std::size_t>(file)];
  if (descriptor >= 0) return descriptor;
  const FileEntry& entry = files_[static_cast<std::size_t>(file)];
  const std::filesystem::path path = folder_ / entry.name;
  descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(Status::input, "{}: can't be opened: {}", path.string(), std::strerror(errno));
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || static_cast<std::uint64_t>(status.st_size) != entry.size_bytes) {
    fail(Status::input, "{}: has {} bytes, but {} says {}: the file was cut or replaced; take another checkpoint",
         path.string(), status.st_size, kManifestName, entry.size_bytes);
  }
  return descriptor;
}

const ParameterEntry* Checkpoint::find(std::string_view kind, std::string_view name) const {
  const auto place = index_.find(std::pair(std::string(kind), std::string(name)));
  return place == index_.end() ? nullptr : &parameters_[place->second];
}

std::string Checkpoint::digest(std::string_view kind) const {
  Digester digester;
  const auto add = [&](std::string_view text) {
    digester.update(text.data(), text.size());
    digester.update("\n", 1);
  };
  for (const ParameterEntry& parameter : parameters_) {
    if (parameter.kind != kind) continue;
    add(parameter.name);
    add(name(parameter.dtype));
    add(to_string(parameter.shape));
    for (const SliceEntry& slice : parameter.slices) {
      add(to_string(slice.offset));
      add(to_string(slice.shape));
      add(slice.digest);
    }
  }
  return digester.finish();
}

// Reads a slice (all of it where its digest is still to be checked, else what is wanted) and copies what `out` wants.
void Checkpoint::read_slice(const ParameterEntry& parameter, std::size_t index, const ShardedTensor* out) {
  const SliceEntry& slice = parameter.slices[index];
  const FileEntry& file = files_[static_cast<std::size_t>(slice.file)];
  const std::filesystem::path path = folder_ / file.name;
  const int source = descriptor(slice.file);
  const std::int64_t element = size_bytes(parameter.dtype);
  std::vector<bool>& verified = verified_[static_cast<std::size_t>(&parameter - parameters_.data())];

  std::optional<Overlap> overlap;
  if (out != nullptr) overlap.emplace(slice, parameter.dtype, *out);
  std::int64_t begin = 0, end = slice.shape.elements();
  if (verified[index]) {
    if (!overlap) return;
    std::tie(begin, end) = overlap->span();
  }
  const bool direct = overlap && overlap->exact() && out->local.dtype == parameter.dtype;
  std::vector<std::byte> buffer(direct ? 0 : static_cast<std::size_t>(std::min(kChunkBytes, (end - begin) * element)));
  Digester digester;
  while (begin < end) {
    const std::int64_t count = std::min(kChunkBytes / element, end - begin);
    std::byte* data = direct ? static_cast<std::byte*>(out->local.data) + begin * element : buffer.data();
    const auto bytes = static_cast<std::size_t>(count * element);
    read_at(source, data, bytes, slice.byte_offset + static_cast<std::uint64_t>(begin * element), path);
    if (!verified[index]) digester.update(data, bytes);
    if (overlap && !direct) overlap->copy(data, begin, begin + count);
    begin += count;
  }
  if (verified[index]) return;
  if (digester.finish() != slice.digest) {
    const auto bytes = static_cast<std::uint64_t>(slice.shape.elements() * element);
    fail(Status::input,
         "{}: damaged: {} {}, dataset /{}, bytes {} to {}: the digest isn't that of {}; take another checkpoint",
         path.string(), parameter.kind, parameter.name, slice.dataset, slice.byte_offset, slice.byte_offset + bytes,
         kManifestName);
  }
  verified[index] = true;
}

void Checkpoint::read(std::string_view kind, const ShardedTensor& out) {
  const ParameterEntry* parameter = find(kind, out.name);
  if (parameter == nullptr) {
    fail(Status::input, "{}: has no {} of {}: it was saved without, or by another model", folder_.string(), kind,
         out.name);
  }
  if (!(parameter->shape == out.global_shape)) {
    fail(Status::input, "{}: {} {} has shape {}, but the model's is {}: take the model this checkpoint was saved with",
         folder_.string(), kind, out.name, to_string(parameter->shape), to_string(out.global_shape));
  }
  check_bounds(out);
  if (out.local.elements() == 0) return;
  for (std::size_t i = 0; i < parameter->slices.size(); ++i) {
    if (!Overlap(parameter->slices[i], parameter->dtype, out).empty()) read_slice(*parameter, i, &out);
  }
}

void Checkpoint::verify(const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  const std::uint64_t all = data_bytes();
  std::uint64_t done = 0;
  for (const ParameterEntry& parameter : parameters_) {
    for (std::size_t i = 0; i < parameter.slices.size(); ++i) {
      read_slice(parameter, i, nullptr);
      done += static_cast<std::uint64_t>(parameter.slices[i].shape.elements() * size_bytes(parameter.dtype));
      if (progress) progress(done, all);
    }
  }
}

std::uint64_t Checkpoint::data_bytes() const {
  std::uint64_t bytes = 0;
  for (const ParameterEntry& parameter : parameters_) {
    bytes += static_cast<std::uint64_t>(parameter.shape.elements() * size_bytes(parameter.dtype));
  }
  return bytes;
}

}  // namespace dropcycle
