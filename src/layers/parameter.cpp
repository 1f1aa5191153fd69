#include "dropcycle/layers/parameter.hpp"

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

Part part_of(int dim, std::int64_t size, const Communicator& ranks) {
  if (ranks.size() == 1) return {};
  const Piece piece = piece_of(size, ranks.rank(), ranks.size());
  return {dim, piece.first, piece.count};
}

void check_divides(std::int64_t size, const char* size_key, const Communicator& ranks, const char* ranks_key) {
  if (size % ranks.size() == 0) return;
  fail(Status::usage, "{} = {} can't be shared evenly by {} = {} ranks: choose a divisor", size_key, size, ranks_key,
       ranks.size());
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
