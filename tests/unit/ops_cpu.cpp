// The cpu backend under the tests of Ops: with three threads and with one.
#include <omp.h>

#include "ops_support.hpp"

namespace dropcycle::test {

Ops& tested_ops() {
  static const auto ops = make_cpu_ops({});
  return *ops;
}

void in_way(int way, const std::function<void()>& body) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(way == 0 ? 3 : 1);
  body();
  omp_set_num_threads(threads);
}

}  // namespace dropcycle::test
