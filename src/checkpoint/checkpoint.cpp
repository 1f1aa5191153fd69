#include "dropcycle/checkpoint/checkpoint.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

#include "dropcycle/core/convert.hpp"
#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "huggingface_folder.hpp"
#include "manifest.hpp"
#include "plain_folder.hpp"

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
  const bool elsewhere = is_huggingface(folder);
  const std::filesystem::path manifest_path = folder / kManifestName;
  Manifest manifest = elsewhere ? read_huggingface(folder, checkpoint.descriptors_)
                                : parse_manifest(read_file(manifest_path), manifest_path);
  checkpoint.info_ = std::move(manifest.info);
  checkpoint.files_ = std::move(manifest.files);
  checkpoint.parameters_ = std::move(manifest.parameters);
  checkpoint.tokenizer_files_ = std::move(manifest.tokenizer_files);
  if (!checkpoint.tokenizer_files_.empty()) {
    checkpoint.tokenizer_folder_ = elsewhere ? folder : folder / kTokenizerFolder;
  }
  for (std::size_t i = 0; i < checkpoint.parameters_.size(); ++i) {
    const ParameterEntry& parameter = checkpoint.parameters_[i];
    const bool fresh = checkpoint.index_.try_emplace({parameter.kind, parameter.name}, i).second;
    if (!fresh) {
      fail(Status::input, "{}: {} {} stands there twice", manifest_path.string(), parameter.kind, parameter.name);
    }
    checkpoint.verified_.emplace_back(parameter.slices.size(), false);
  }
  if (!elsewhere) checkpoint.check_structure();
  return checkpoint;
}

void Checkpoint::check_structure() {
  descriptors_.assign(files_.size(), -1);
  std::vector<std::vector<std::pair<std::uint64_t, std::uint64_t>>> ranges(files_.size());
  for (const ParameterEntry& parameter : parameters_) {
    for (const SliceEntry& slice : parameter.slices) {
      const auto bytes = static_cast<std::uint64_t>(slice.shape.elements() * size_bytes(parameter.dtype));
      ranges[static_cast<std::size_t>(slice.file)].emplace_back(slice.byte_offset, slice.byte_offset + bytes);
    }
  }
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const FileEntry& file = files_[i];
    const std::filesystem::path path = folder_ / file.name;
    const int source = descriptor(static_cast<int>(i));
    if (structure_digest(source, path, file.size_bytes, std::move(ranges[i])) != file.structure_digest) {
      fail(Status::input, "{}: damaged outside its tensors (its structure isn't what {} says); take another checkpoint",
           path.string(), kManifestName);
    }
  }
}

Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;

Checkpoint& Checkpoint::operator=(Checkpoint&& other) noexcept {
  folder_ = std::move(other.folder_);
  info_ = std::move(other.info_);
  files_ = std::move(other.files_);
  parameters_ = std::move(other.parameters_);
  index_ = std::move(other.index_);
  tokenizer_files_ = std::move(other.tokenizer_files_);
  tokenizer_folder_ = std::move(other.tokenizer_folder_);
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

std::string Checkpoint::digest(std::string_view kind) {
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
    for (std::size_t i = 0; i < parameter.slices.size(); ++i) {
      const SliceEntry& slice = parameter.slices[i];
      if (slice.digest.empty()) scan_slice(parameter, i, 0, slice.shape.elements(), nullptr, [](auto...) {});
      add(to_string(slice.offset));
      add(to_string(slice.shape));
      add(slice.digest);
    }
  }
  return digester.finish();
}

bool Checkpoint::digests_known() const {
  return std::ranges::none_of(parameters_, [](const ParameterEntry& parameter) {
    return std::ranges::any_of(parameter.slices, [](const SliceEntry& slice) { return slice.digest.empty(); });
  });
}

std::string Checkpoint::read_tokenizer_file(const AttachmentEntry& file) const {
  std::string content = PlainFolder(tokenizer_folder_).read(file.name, file.size_bytes);
  if (dropcycle::digest(content) != file.digest) {
    fail(Status::input, "{}: damaged: its digest isn't that of {}; take another checkpoint",
         (tokenizer_folder_ / file.name).string(), kManifestName);
  }
  return content;
}

void Checkpoint::copy_tokenizer(const std::filesystem::path& folder) const {
  for (const AttachmentEntry& file : tokenizer_files_) write_file(folder / file.name, read_tokenizer_file(file));
}

// Reads elements [begin, end) of a slice piece by piece, into `target` if given, and calls visit(data, first element,
// count) for each. A slice that is read as a whole gets its digest checked, or taken down where it is unknown.
template <class Visit>
void Checkpoint::scan_slice(const ParameterEntry& parameter, std::size_t index, std::int64_t begin, std::int64_t end,
                            std::byte* target, const Visit& visit) {
  const auto place = static_cast<std::size_t>(&parameter - parameters_.data());
  SliceEntry& slice = parameters_[place].slices[index];
  const std::filesystem::path path = folder_ / files_[static_cast<std::size_t>(slice.file)].name;
  const int source = descriptor(slice.file);
  const std::int64_t element = size_bytes(parameter.dtype);
  const bool whole = begin == 0 && end == slice.shape.elements() && !verified_[place][index];
  std::vector<std::byte> buffer(
      target != nullptr ? 0 : static_cast<std::size_t>(std::min(kChunkBytes, (end - begin) * element)));
  Digester digester;
  for (std::int64_t first = begin; first < end;) {
    const std::int64_t count = std::min(kChunkBytes / element, end - first);
    std::byte* data = target != nullptr ? target + (first - begin) * element : buffer.data();
    const auto bytes = static_cast<std::size_t>(count * element);
    read_at(source, data, bytes, slice.byte_offset + static_cast<std::uint64_t>(first * element), path);
    if (whole) digester.update(data, bytes);
    visit(data, first, count);
    first += count;
  }
  if (!whole) return;
  const std::string digest = digester.finish();
  if (slice.digest.empty()) slice.digest = digest;
  if (digest != slice.digest) {
    const auto bytes = static_cast<std::uint64_t>(slice.shape.elements() * element);
    fail(Status::input,
         "{}: damaged: {} {}, dataset /{}, bytes {} to {}: the digest isn't that of {}; take another checkpoint",
         path.string(), parameter.kind, parameter.name, slice.dataset, slice.byte_offset, slice.byte_offset + bytes,
         kManifestName);
  }
  verified_[place][index] = true;
}

// Copies what `out` wants of a slice. All of the slice is read where its digest is still to be checked.
void Checkpoint::read_slice(const ParameterEntry& parameter, std::size_t index, const ShardedTensor& out) {
  const SliceEntry& slice = parameter.slices[index];
  const Overlap overlap(slice, parameter.dtype, out);
  const auto place = static_cast<std::size_t>(&parameter - parameters_.data());
  std::int64_t begin = 0, end = slice.shape.elements();
  if (verified_[place][index] || slice.digest.empty()) std::tie(begin, end) = overlap.span();
  const bool direct = overlap.exact() && out.local.dtype == parameter.dtype;
  scan_slice(parameter, index, begin, end, direct ? static_cast<std::byte*>(out.local.data) : nullptr,
             [&](const std::byte* data, std::int64_t first, std::int64_t count) {
               if (!direct) overlap.copy(data, first, first + count);
             });
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
    if (!Overlap(parameter->slices[i], parameter->dtype, out).empty()) read_slice(*parameter, i, out);
  }
}

void Checkpoint::stream(const ParameterEntry& parameter, const std::function<void(std::span<const std::byte>)>& take) {
  const std::int64_t element = size_bytes(parameter.dtype);
  // Slices of whole rows follow one another; others are put together piece by piece.
  std::vector<std::size_t> order(parameter.slices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {},
                    [&](std::size_t i) { return parameter.shape.dims() == 0 ? 0 : parameter.slices[i].offset[0]; });
  const bool whole_rows = std::ranges::all_of(parameter.slices, [&](const SliceEntry& slice) {
    for (int dim = 1; dim < slice.shape.dims(); ++dim) {
      if (slice.shape[dim] != parameter.shape[dim]) return false;
    }
    return true;
  });
  if (whole_rows) {
    for (const std::size_t i : order) {
      scan_slice(parameter, i, 0, parameter.slices[i].shape.elements(), nullptr,
                 [&](const std::byte* data, std::int64_t, std::int64_t count) {
                   take({data, static_cast<std::size_t>(count * element)});
                 });
    }
    return;
  }
  const std::int64_t row_bytes = parameter.shape.elements() / parameter.shape[0] * element;
  const std::int64_t piece = std::max<std::int64_t>(1, kChunkBytes / row_bytes);
  std::vector<std::byte> buffer(static_cast<std::size_t>(piece * row_bytes));
  Shape shape = parameter.shape, offset = parameter.slices.front().offset;
  for (int dim = 0; dim < offset.dims(); ++dim) offset.set(dim, 0);
  for (std::int64_t row = 0; row < parameter.shape[0]; row += piece) {
    offset.set(0, row);
    shape.set(0, std::min(piece, parameter.shape[0] - row));
    read(parameter.kind, {parameter.name, parameter.shape, offset, Tensor(buffer.data(), parameter.dtype, shape)});
    take({buffer.data(), static_cast<std::size_t>(shape[0] * row_bytes)});
  }
}

void Checkpoint::verify(const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  const std::uint64_t all = data_bytes();
  std::uint64_t done = 0;
  for (const AttachmentEntry& file : tokenizer_files_) read_tokenizer_file(file);
  for (const ParameterEntry& parameter : parameters_) {
    for (std::size_t i = 0; i < parameter.slices.size(); ++i) {
      scan_slice(parameter, i, 0, parameter.slices[i].shape.elements(), nullptr, [](auto...) {});
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
