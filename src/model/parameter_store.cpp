#include "dropcycle/model/parameter_store.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kBlockAlignment = 64;

Tensor slice(const Tensor& flat, std::int64_t first, const Shape& shape) {
  return flat.rows(first, shape.elements()).reshaped(shape);
}

}  // namespace

ParameterStore::ParameterStore(std::vector<ParameterSpec> specs, DType compute)
    : specs_(std::move(specs)), compute_(compute) {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const ParameterSpec& spec = specs_[i];
    std::int64_t& end = flats_[index(spec.group)].elements;
    const bool continues = i > 0 && !spec.block.empty() && specs_[i - 1].block == spec.block;
    if (!continues) end = (end + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
    ranges_.push_back({spec.group, end, end + spec.shape.elements()});
    end += spec.shape.elements();
    require(by_name_.emplace(spec.name, i).second, "parameter {} is declared twice", spec.name);
  }
  for (Flat& flat : flats_) {
    const DType acc = accumulator_of(compute);
    flat.master = OwnedTensor(acc, {flat.elements});
    flat.gradient = OwnedTensor(acc, {flat.elements});
    if (compute != acc) flat.weight = OwnedTensor(compute, {flat.elements});
  }
}

FlatRange ParameterStore::range_of(const std::string& prefix, GradientGroup group) const {
  FlatRange range{group, 0, 0};
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].group != group || !specs_[i].name.starts_with(prefix)) continue;
    if (range.last == 0) range.first = ranges_[i].first;
    range.last = ranges_[i].last;
  }
  return range;
}

const ParameterSpec& ParameterStore::block_start(const std::string& first_name, const Shape& shape,
                                                 FlatRange& range) const {
  const auto found = by_name_.find(first_name);
  require(found != by_name_.end(), "no parameter {}", first_name);
  std::size_t last = found->second;
  const ParameterSpec& spec = specs_[last];
  while (!spec.block.empty() && last + 1 < specs_.size() && specs_[last + 1].block == spec.block) ++last;
  range = {spec.group, ranges_[found->second].first, ranges_[last].last};
  require(shape.elements() == range.last - range.first, "block {} has {} elements, not shape {}", first_name,
          range.last - range.first, to_string(shape));
  return spec;
}

Tensor ParameterStore::weight(const std::string& first_name, const Shape& shape) const {
  FlatRange range;
  const ParameterSpec& spec = block_start(first_name, shape, range);
  const Flat& flat = flats_[index(range.group)];
  const bool master = spec.full_precision() || !flat.weight.view();
  return slice(master ? flat.master : flat.weight, range.first, shape);
}

Tensor ParameterStore::gradient(const std::string& first_name, const Shape& shape) const {
  FlatRange range;
  block_start(first_name, shape, range);
  return slice(flats_[index(range.group)].gradient, range.first, shape);
}

std::vector<ShardedTensor> ParameterStore::sharded(const Tensor& dense, const Tensor& expert, bool dense_writer,
                                                   bool expert_writer) const {
  std::vector<ShardedTensor> parts;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const bool is_dense = specs_[i].group == GradientGroup::dense;
    const std::int64_t zeros[Shape::kMaxDims] = {};
    const Shape& shape = specs_[i].shape;
    parts.push_back({.name = specs_[i].name,
                     .global_shape = shape,
                     .offset = Shape(std::span(zeros, static_cast<std::size_t>(shape.dims()))),
                     .local = slice(is_dense ? dense : expert, ranges_[i].first, shape),
                     .writer = is_dense ? dense_writer : expert_writer});
  }
  return parts;
}

std::vector<ShardedTensor> ParameterStore::sharded_masters(bool dense_writer, bool expert_writer) const {
  return sharded(flats_[0].master, flats_[1].master, dense_writer, expert_writer);
}

}  // namespace dropcycle
