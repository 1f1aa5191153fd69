// The cuda backend under the tests of Ops, on a GPU or on what stands in for one.
#include "../unit/ops_support.hpp"

namespace dropcycle::test {

Ops& tested_ops() {
  static const auto ops = make_ops("cuda");
  return *ops;
}

// The second time plans and algorithms are cached, and memory lies elsewhere.
void in_way(int way, const std::function<void()>& body) {
  const Buffer shifted(way * 4096, tested_ops().device());
  body();
}

}  // namespace dropcycle::test
