// What the stand-in library (stand_in.hpp) counted in this process, for tests: work that has been asked for, but for
// kernel_bytes, which are counted as kernels run.
#pragma once

#include <cstdint>

namespace stand_in {

struct Counters {
  std::int64_t allocations = 0, live_allocations = 0, live_bytes = 0;
  // Device memory read and written, in bytes: copies within the device twice, from and to the host once.
  std::int64_t copied_bytes = 0, set_bytes = 0;
  // Operands once, results once; results that accumulate twice.
  std::int64_t product_bytes = 0;
  // Sectors of 32 bytes, read once and written once a kernel. Of programs made by dropcycle_on_stand_in(... COUNTED).
  std::int64_t kernel_bytes = 0;
  // cuDNN's tensors in memory, once each.
  std::int64_t graph_bytes = 0;
  // Sent and received buffers of this rank.
  std::int64_t collective_bytes = 0;
  std::int64_t copies = 0, products = 0, collectives = 0, kernels = 0;
  std::int64_t graphs = 0;    // cuDNN's plans that ran
  std::int64_t launches = 0;  // of CUDA graphs
};

Counters counted();

}  // namespace stand_in
