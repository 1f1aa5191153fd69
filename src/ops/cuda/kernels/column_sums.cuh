// Sums of columns in an order that depends on the sizes only, for partial results of other kernels.
#pragma once

#include <cstdint>

#include "launch.hpp"

namespace dropcycle::cuda {

// out[j] = Σ_i x[i, j], added to out[j] if `accumulate`. Where there are many rows, sums of some of them come first;
// they take divide_up(rows, 256) * width * 4 bytes of scratch at most. x may lie in scratch if rows <= kDirectRows.
constexpr std::int64_t kDirectRows = 1024;
void sum_columns(cudaStream_t stream, void* scratch, const float* x, std::int64_t rows, std::int64_t width, float* out,
                 bool accumulate);

}  // namespace dropcycle::cuda
