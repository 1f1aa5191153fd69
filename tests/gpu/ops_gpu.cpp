// The cuda backend under the tests of Ops, on the process's first GPU.
#include "../unit/ops_support.hpp"

namespace dropcycle::test {

Ops& tested_ops() {
  static const auto ops = make_cuda_ops({});
  return *ops;
}

// The second time plans and algorithms are cached, and memory lies elsewhere.
void in_way(int way, const std::function<void()>& body) {
  const Buffer shifted(way * 4096, tested_ops().device());
  body();
}

}  // namespace dropcycle::test
