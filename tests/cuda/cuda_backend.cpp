// The cuda backend under the tests of Ops, on a GPU or on what stands in for one. Twice the same: which of its streams
// runs first is left to it.
#include "../unit/ops_support.hpp"

namespace dropcycle::test {

Ops& tested_ops() {
  static const auto ops = make_ops("cuda");
  return *ops;
}

void in_way(int, const std::function<void()>& body) { body(); }

}  // namespace dropcycle::test
