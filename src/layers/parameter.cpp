#include "dropcycle/layers/parameter.hpp"

#include <algorithm>

namespace dropcycle {

GroupKind replicas_of(GradientGroup group) {
  switch (group) {
    case GradientGroup::dense:
      return GroupKind::dense_gradient;
    case GradientGroup::replicated:
      return GroupKind::stage;
    case GradientGroup::expert:
      return GroupKind::expert_gradient;
  }
  fail(Status::internal, "gradient group {}", static_cast<int>(group));
}

GradientGroup whole_group(const Groups& groups) {
  return groups[GroupKind::tp].size() > 1 ? GradientGroup::replicated : GradientGroup::dense;
}

Part part_of(int dim, std::int64_t size, const Communicator& ranks) {
  if (ranks.size() == 1) return {};
  const std::int64_t count = (size + ranks.size() - 1) / ranks.size();
  const std::int64_t first = std::min(size, ranks.rank() * count);
  return {dim, first, std::min(size, first + count) - first};
}

Shape ParameterSpec::local_shape() const {
  Shape local = shape;
  if (part.dim >= 0) local.set(part.dim, part.count);
  return local;
}

Shape ParameterSpec::offset() const {
  Shape offset = shape;
  for (int dim = 0; dim < shape.dims(); ++dim) offset.set(dim, dim == part.dim ? part.first : 0);
  return offset;
}

}  // namespace dropcycle
