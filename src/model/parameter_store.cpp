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
    std::int64_t& end = flats_[spec.group].elements;
    const bool continues = i > 0 && !spec.block.empty() && specs_[i - 1].block == spec.block;
    if (!continues) end = (end + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
    ranges_.push_back({spec.group, end, end + spec.local_shape().elements()});
    end = ranges_.back().last;
    require(by_name_.emplace(spec.name, i).second, "parameter {} is declared twice", spec.name);
  }
  for (const GradientGroup group : kGradientGroups) {
    Flat& flat = flats_[group];
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
  const Flat& flat = flats_[range.group];
  const bool master = spec.full_precision() || !flat.weight.view();
  return slice(master ? flat.master : flat.weight, range.first, shape);
}

Tensor ParameterStore::gradient(const std::string& first_name, const Shape& shape) const {
  FlatRange range;
  block_start(first_name, shape, range);
  return slice(flats_[range.group].gradient, range.first, shape);
}

std::vector<ShardedTensor> ParameterStore::sharded(const PerGroup<Tensor>& flats, const PerGroup<bool>& writes) const {
  std::vector<ShardedTensor> parts;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const ParameterSpec& spec = specs_[i];
    const Shape local = spec.local_shape();
    parts.push_back({.name = spec.name,
                     .global_shape = spec.shape,
                     .offset = spec.offset(),
                     .local = slice(flats[spec.group], ranges_[i].first, local),
                     .writer = writes[spec.group] && spec.owner && local.elements() > 0});
  }
  return parts;
}

std::vector<ShardedTensor> ParameterStore::sharded_masters() const {
  return sharded(PerGroup<Tensor>::of([&](GradientGroup group) { return masters(group); }),
                 PerGroup<bool>::of([](GradientGroup) { return true; }));
}

std::vector<ShardedTensor> ParameterStore::sharded_gradients() const {
  return sharded(PerGroup<Tensor>::of([&](GradientGroup group) { return gradients(group); }),
                 PerGroup<bool>::of([](GradientGroup) { return true; }));
}

}  // namespace dropcycle
