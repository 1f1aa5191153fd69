#include "hdf5_plan.hpp"

#include <fmt/format.h>
#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <set>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kAlignThreshold = 65536;  // datasets of at least this many bytes start on a page

// A file in memory that holds only the pages that were written.
class SparseFile {
 public:
  void write(std::uint64_t offset, const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    while (size > 0) {
      const std::size_t part = std::min<std::size_t>(size, kPage - offset % kPage);
      auto& page = pages_[offset / kPage];
      if (page.empty()) page.resize(kPage);
      std::memcpy(page.data() + offset % kPage, bytes, part);
      offset += part;
      bytes += part;
      size -= part;
    }
  }
  void read(std::uint64_t offset, void* data, std::size_t size) const {
    auto* bytes = static_cast<std::byte*>(data);
    while (size > 0) {
      const std::size_t part = std::min<std::size_t>(size, kPage - offset % kPage);
      const auto page = pages_.find(offset / kPage);
      if (page == pages_.end()) {
        std::memset(bytes, 0, part);
      } else {
        std::memcpy(bytes, page->second.data() + offset % kPage, part);
      }
      offset += part;
      bytes += part;
      size -= part;
    }
  }

  haddr_t end_of_allocation = 0, end_of_file = 0;

 private:
  std::map<std::uint64_t, std::vector<std::byte>> pages_;
};

// --- HDF5's virtual file driver on SparseFile. The SparseFile's address is the driver's access property. ---

struct DriverFile {
  H5FD_t base;
  SparseFile* file;
};

SparseFile& sparse(H5FD_t* file) { return *reinterpret_cast<DriverFile*>(file)->file; }
const SparseFile& sparse(const H5FD_t* file) { return *reinterpret_cast<const DriverFile*>(file)->file; }

H5FD_t* open_driver(const char*, unsigned, hid_t access, haddr_t) {
  const auto* file = static_cast<SparseFile* const*>(H5Pget_driver_info(access));
  if (file == nullptr) return nullptr;
  return reinterpret_cast<H5FD_t*>(new DriverFile{{}, *file});
}
herr_t close_driver(H5FD_t* file) {
  delete reinterpret_cast<DriverFile*>(file);
  return 0;
}
herr_t query_driver(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA;
  return 0;
}
haddr_t get_allocation_end(const H5FD_t* file, H5FD_mem_t) { return sparse(file).end_of_allocation; }
herr_t set_allocation_end(H5FD_t* file, H5FD_mem_t, haddr_t end) {
  sparse(file).end_of_allocation = end;
  return 0;
}
haddr_t get_file_end(const H5FD_t* file, H5FD_mem_t) { return sparse(file).end_of_file; }
herr_t read_driver(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, size_t size, void* data) {
  sparse(file).read(offset, data, size);
  return 0;
}
herr_t write_driver(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, size_t size, const void* data) {
  sparse(file).write(offset, data, size);
  sparse(file).end_of_file = std::max<haddr_t>(sparse(file).end_of_file, offset + size);
  return 0;
}
herr_t truncate_driver(H5FD_t* file, hid_t, hbool_t) {
  sparse(file).end_of_file = sparse(file).end_of_allocation;
  return 0;
}

// Checks what an HDF5 call returned.
hid_t check(std::int64_t result, const char* call) {
  require(result >= 0, "HDF5 call {} failed while laying out a checkpoint file", call);
  return result;
}

// An HDF5 identifier with the function that closes it.
class Handle {
 public:
  Handle(std::int64_t id, herr_t (*close)(hid_t), const char* call) : id_(check(id, call)), close_(close) {}
  ~Handle() { close_(id_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

hid_t driver() {
  static const hid_t id = [] {
    H5FD_class_t table{};
    table.name = "dropcycle_sparse";
    table.maxaddr = static_cast<haddr_t>(1) << 62;
    table.fc_degree = H5F_CLOSE_STRONG;
    table.fapl_size = sizeof(SparseFile*);
    table.open = open_driver;
    table.close = close_driver;
    table.query = query_driver;
    table.get_eoa = get_allocation_end;
    table.set_eoa = set_allocation_end;
    table.get_eof = get_file_end;
    table.read = read_driver;
    table.write = write_driver;
    table.truncate = truncate_driver;
    const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
    std::copy(std::begin(map), std::end(map), table.fl_map);
    return check(H5FDregister(&table), "H5FDregister");
  }();
  return id;
}

// A floating type of 16 bits: the sign, `exponent_bits`, and the fraction.
hid_t make_short_float(std::size_t exponent_bits, std::size_t bias) {
  const std::size_t fraction_bits = 15 - exponent_bits;
  const hid_t type = check(H5Tcopy(H5T_IEEE_F32LE), "H5Tcopy");
  check(H5Tset_fields(type, 15, fraction_bits, exponent_bits, 0, fraction_bits), "H5Tset_fields");
  check(H5Tset_precision(type, 16), "H5Tset_precision");
  check(H5Tset_size(type, 2), "H5Tset_size");
  check(H5Tset_ebias(type, bias), "H5Tset_ebias");
  return type;
}

hid_t hdf5_type(DType dtype) {
  static const hid_t bf16 = make_short_float(8, 127), f16 = make_short_float(5, 15);
  switch (dtype) {
    case DType::f64:
      return H5T_IEEE_F64LE;
    case DType::f32:
      return H5T_IEEE_F32LE;
    case DType::bf16:
      return bf16;
    case DType::f16:
      return f16;
    case DType::i32:
      return H5T_STD_I32LE;
    case DType::i16:
      return H5T_STD_I16LE;
  }
  return H5T_IEEE_F32LE;
}

void write_attribute(hid_t dataset, const char* name, const Shape& value) {
  const hsize_t count = static_cast<hsize_t>(value.dims());
  if (count == 0) return;
  const Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose, "H5Screate_simple");
  const Handle attribute(H5Acreate2(dataset, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         "H5Acreate2");
  check(H5Awrite(attribute, H5T_NATIVE_INT64, value.sizes().data()), "H5Awrite");
}

std::vector<std::string> dataset_names(const std::vector<SliceSpec>& slices) {
  std::vector<std::string> names;
  std::map<std::string, int> uses;
  for (const SliceSpec& slice : slices) {
    std::string name = slice.kind + "/" + slice.name;
    if (const int use = uses[name]++; use > 0) name += fmt::format("#{}", use);
    names.push_back(std::move(name));
  }
  return names;
}

void create_datasets(hid_t file, const std::vector<SliceSpec>& slices, FilePlan& plan) {
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "H5Pcreate");
  check(H5Pset_create_intermediate_group(links, 1), "H5Pset_create_intermediate_group");
  const Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "H5Pcreate");
  check(H5Pset_layout(creation, H5D_CONTIGUOUS), "H5Pset_layout");
  check(H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY), "H5Pset_alloc_time");
  check(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER), "H5Pset_fill_time");
  check(H5Pset_obj_track_times(creation, 0), "H5Pset_obj_track_times");
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const SliceSpec& slice = slices[i];
    hsize_t dims[Shape::kMaxDims] = {};
    for (int dim = 0; dim < slice.shape.dims(); ++dim) dims[dim] = static_cast<hsize_t>(slice.shape[dim]);
    const Handle space(
        slice.shape.dims() == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(slice.shape.dims(), dims, nullptr), H5Sclose,
        "H5Screate");
    const Handle dataset(
        H5Dcreate2(file, plan.datasets[i].c_str(), hdf5_type(slice.dtype), space, links, creation, H5P_DEFAULT),
        H5Dclose, "H5Dcreate2");
    write_attribute(dataset, "offset", slice.offset);
    write_attribute(dataset, "global_shape", slice.global_shape);
    const haddr_t offset = H5Dget_offset(dataset);
    require(offset != HADDR_UNDEF, "HDF5 gave dataset {} no place", plan.datasets[i]);
    plan.offsets.push_back(offset);
  }
}

// Everything outside the slices.
void collect_structure(const std::vector<SliceSpec>& slices, const SparseFile& file, FilePlan& plan) {
  std::vector<std::size_t> order(slices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {}, [&](std::size_t i) { return plan.offsets[i]; });
  std::uint64_t position = 0;
  const auto add = [&](std::uint64_t end) {
    require(end >= position, "datasets of a checkpoint file overlap");
    if (end == position) return;
    FilePlan::Region region{position, std::vector<std::byte>(end - position)};
    file.read(position, region.bytes.data(), region.bytes.size());
    plan.structure.push_back(std::move(region));
  };
  for (const std::size_t i : order) {
    add(plan.offsets[i]);
    position = plan.offsets[i] + static_cast<std::uint64_t>(slices[i].size_bytes());
  }
  add(plan.size_bytes);
}

}  // namespace

FilePlan plan_hdf5(const std::vector<SliceSpec>& slices) {
  FilePlan plan;
  plan.datasets = dataset_names(slices);
  SparseFile memory;
  SparseFile* address = &memory;
  {
    const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
    check(H5Pset_driver(access, driver(), &address), "H5Pset_driver");
    check(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), "H5Pset_libver_bounds");
    check(H5Pset_alignment(access, kAlignThreshold, kPage), "H5Pset_alignment");
    const Handle file(H5Fcreate("checkpoint", H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose, "H5Fcreate");
    create_datasets(file, slices, plan);
  }
  plan.size_bytes = memory.end_of_file;
  collect_structure(slices, memory, plan);
  return plan;
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  check(H5get_libversion(&major, &minor, &release), "H5get_libversion");
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace dropcycle
