#include "dropcycle/model/parameter_store.hpp"

#include <algorithm>

#include "dropcycle/parallel/gradient_buckets.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kBlockAlignment = 64;

Tensor slice(const Tensor& flat, std::int64_t first, const Shape& shape) {
  return flat.rows(first, shape.elements()).reshaped(shape);
}

// Where each parameter lies, in the order of `specs`, and how far each group's array goes.
struct FlatLayout {
  explicit FlatLayout(const std::vector<ParameterSpec>& specs) {
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const ParameterSpec& spec = specs[i];
      require(spec.full_precision() == (spec.group == GradientGroup::replicated), "gradient group of {}", spec.name);
      std::int64_t& end = elements[spec.group];
      const bool continues = i > 0 && !spec.block.empty() && specs[i - 1].block == spec.block;
      if (!continues) end = (end + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
      ranges.push_back({spec.group, end, end + spec.local_shape().elements()});
      end = ranges.back().last;
    }
  }
  std::vector<FlatRange> ranges;
  PerGroup<std::int64_t> elements;
};

// Elements [first, last) of a vector or of a matrix in row-major order as rectangles: call(first element, offset,
// shape) for what is left of a begun row, the whole rows, and the beginning of the last one.
template <class F>
void for_each_rectangle(const Shape& shape, std::int64_t first, std::int64_t last, F&& call) {
  if (shape.dims() < 2 || (first == 0 && last == shape.elements())) {
    Shape offset = shape, size = shape;
    for (int dim = 0; dim < shape.dims(); ++dim) offset.set(dim, 0);
    if (shape.dims() == 1) {
      offset.set(0, first);
      size.set(0, last - first);
    }
    return call(first, offset, size);
  }
  require(shape.dims() == 2, "a part of a tensor {}", to_string(shape));
  const std::int64_t width = shape[1];
  while (first < last) {
    const std::int64_t row = first / width, column = first % width;
    const bool whole = column == 0 && last - first >= width;
    const std::int64_t rows = whole ? (last - first) / width : 1;
    const std::int64_t columns = whole ? width : std::min(width - column, last - first);
    call(first, Shape{row, column}, Shape{rows, columns});
    first += rows * columns;
  }
}

}  // namespace

ParameterStore::ParameterStore(std::vector<ParameterSpec> specs, DType compute, const PerGroup<Replica>& replicas,
                               const ShardOptions& shards, Device& device)
    : specs_(std::move(specs)), compute_(compute), shards_(shards) {
  FlatLayout layout(specs_);
  ranges_ = std::move(layout.ranges);
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    require(by_name_.emplace(specs_[i].name, i).second, "parameter {} is declared twice", specs_[i].name);
  }
  for (const GradientGroup group : kGradientGroups) {
    flats_[group].elements = layout.elements[group];
    allocate(group, replicas[group], device);
  }
}

PerGroup<std::int64_t> ParameterStore::elements_of(const std::vector<ParameterSpec>& specs) {
  return FlatLayout(specs).elements;
}

void ParameterStore::allocate(GradientGroup group, const Replica& replica, Device& device) {
  Flat& flat = flats_[group];
  const DType acc = accumulator_of(compute_), type = group == GradientGroup::replicated ? acc : compute_;
  flat.buckets = cut_into_buckets(flat.elements, offsets(group), size_bytes(acc), shards_.bucket_bytes);
  std::int64_t at = 0;
  for (const Piece& bucket : flat.buckets) {
    const Piece own = piece_of(bucket.count, replica.rank, replica.ranks);
    if (own.count == 0) continue;
    flat.owned.push_back({bucket.first + own.first, bucket.first + own.first + own.count, at});
    at += own.count;
  }
  flat.kept = shards_.optimizer ? flat.owned : std::vector<KeptRange>{{0, flat.elements, 0}};
  flat.weight = OwnedTensor(type, {flat.elements}, device);
  flat.gradient = OwnedTensor(acc, {flat.elements}, device);
  if (type == acc) return;
  require(type == DType::bf16, "masters of {} weights", name(type));
  flat.low = OwnedTensor(DType::i16, {kept_elements(group)}, device);
}

std::int64_t ParameterStore::kept_elements(GradientGroup group) const {
  const std::vector<KeptRange>& kept = flats_[group].kept;
  return kept.empty() ? 0 : kept.back().at + kept.back().last - kept.back().first;
}

std::vector<std::int64_t> ParameterStore::offsets(GradientGroup group) const {
  std::vector<std::int64_t> result;
  for (const FlatRange& range : ranges_) {
    if (range.group == group) result.push_back(range.first);
  }
  return result;
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

Tensor ParameterStore::master(GradientGroup group, const KeptRange& range, std::int64_t first,
                              std::int64_t last) const {
  const Flat& flat = flats_[group];
  return in_halves(group) ? flat.low.view().rows(range.at + first - range.first, last - first)
                          : flat.weight.view().rows(first, last - first);
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
  block_start(first_name, shape, range);
  return slice(flats_[range.group].weight, range.first, shape);
}

Tensor ParameterStore::gradient(const std::string& first_name, const Shape& shape) const {
  FlatRange range;
  block_start(first_name, shape, range);
  return slice(flats_[range.group].gradient, range.first, shape);
}

template <class PartOf>
std::vector<ShardedTensor> ParameterStore::kept_parts(const PerGroup<bool>& writes, PartOf part) const {
  std::vector<ShardedTensor> parts;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const ParameterSpec& spec = specs_[i];
    const FlatRange& all = ranges_[i];
    for (const KeptRange& kept : flats_[spec.group].kept) {
      const std::int64_t first = std::max(kept.first, all.first), last = std::min(kept.last, all.last);
      if (first >= last) continue;
      const bool writer = spec.owner && (shards_.optimizer || writes[spec.group]);
      for_each_rectangle(
          spec.local_shape(), first - all.first, last - all.first,
          [&](std::int64_t element, const Shape& offset, const Shape& shape) {
            const std::int64_t begin = all.first + element;
            Shape place = spec.offset();
            for (int dim = 0; dim < place.dims(); ++dim) place.set(dim, place[dim] + offset[dim]);
            parts.push_back({.name = spec.name,
                             .global_shape = spec.shape,
                             .offset = place,
                             .local = part(spec.group, kept, begin, begin + shape.elements()).reshaped(shape),
                             .writer = writer});
          });
    }
  }
  return parts;
}

std::vector<ShardedTensor> ParameterStore::sharded(const PerGroup<Tensor>& flats, const PerGroup<bool>& writes) const {
  return kept_parts(writes, [&](GradientGroup group, const KeptRange& kept, std::int64_t first, std::int64_t last) {
    return flats[group].rows(kept.at + first - kept.first, last - first);
  });
}

std::vector<ShardedTensor> ParameterStore::sharded_masters(const PerGroup<bool>& writes) const {
  return kept_parts(writes, [&](GradientGroup group, const KeptRange&, std::int64_t first, std::int64_t last) {
    return (in_halves(group) ? gradients(group) : weights(group)).rows(first, last - first);
  });
}

std::vector<ShardedTensor> ParameterStore::sharded_masters() const {
  return sharded_masters(PerGroup<bool>::of([](GradientGroup) { return true; }));
}

std::vector<ShardedTensor> ParameterStore::sharded_gradients() const {
  std::vector<ShardedTensor> parts;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const ParameterSpec& spec = specs_[i];
    parts.push_back({.name = spec.name,
                     .global_shape = spec.shape,
                     .offset = spec.offset(),
                     .local = slice(gradients(spec.group), ranges_[i].first, spec.local_shape())});
  }
  return parts;
}

void ParameterStore::join_masters(Ops& ops) const {
  for (const GradientGroup group : kGradientGroups) {
    if (!in_halves(group)) continue;
    for (const KeptRange& range : kept(group)) {
      const std::int64_t count = range.last - range.first;
      ops.join_masters(weights(group).rows(range.first, count), master(group, range, range.first, range.last),
                       gradients(group).rows(range.first, count));
    }
  }
}

void ParameterStore::split_masters(Ops& ops) {
  for (const GradientGroup group : kGradientGroups) {
    if (!in_halves(group)) continue;
    for (const KeptRange& range : kept(group)) {
      const std::int64_t count = range.last - range.first;
      ops.split_masters(gradients(group).rows(range.first, count), weights(group).rows(range.first, count),
                        master(group, range, range.first, range.last));
    }
    ops.fill_zero(gradients(group));
  }
}

void ParameterStore::take_weights_from_gradients(Ops& ops) {
  for (const GradientGroup group : kGradientGroups) {
    if (in_halves(group)) {
      ops.split_masters(gradients(group), weights(group), {});  // those too of which others keep the masters
    } else {
      ops.convert(gradients(group), weights(group));
      ops.fill_zero(gradients(group));
    }
  }
  split_masters(ops);
  advance_version();
}

std::int64_t ParameterStore::bytes() const {
  std::int64_t sum = 0;
  for (const GradientGroup group : kGradientGroups) {
    const Flat& flat = flats_[group];
    sum += flat.weight.view().bytes() + flat.gradient.view().bytes();
    if (in_halves(group)) sum += flat.low.view().bytes();
  }
  return sum;
}

}  // namespace dropcycle
