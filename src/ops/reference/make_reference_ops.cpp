#include "reference_ops.hpp"

namespace dropcycle {

std::unique_ptr<Ops> make_reference_ops() { return std::make_unique<ReferenceOps>(); }

}  // namespace dropcycle
