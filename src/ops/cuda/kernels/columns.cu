// copy_columns: `width` columns of a matrix into columns of another, converted. Limit: memory. A block works on one
// row, packs side by side in its threads. Bytes: the least possible.
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

template <int N, class From, class To>
__global__ void copy_columns(const From* x, std::int64_t x_stride, To* out, std::int64_t out_stride,
                             std::int64_t width) {
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (column >= width) return;
  store(out + blockIdx.x * out_stride + column, load<N>(x + blockIdx.x * x_stride + column));
}

}  // namespace kernels

void copy_columns(cudaStream_t stream, const Columns& x, const Columns& out, std::int64_t width) {
  const std::int64_t from = x.matrix.shape[1], to = out.matrix.shape[1], rows = x.matrix.shape[0];
  require(x.first + width <= from && out.first + width <= to && rows == out.matrix.shape[0],
          "copy_columns: {} columns from {} on of {} into {} on of {}", width, x.first, to_string(x.matrix.shape),
          out.first, to_string(out.matrix.shape));
  with_type(x.matrix, [&]<class From>() {
    with_type(out.matrix, [&]<class To>() {
      const From* source = elements<From>(x.matrix) + x.first;
      To* target = elements<To>(out.matrix) + out.first;
      const auto start = [&]<int N>() {
        const unsigned threads = threads_for(divide_up(width, N));
        launch(kernels::copy_columns<N, From, To>, blocks(rows, divide_up(width, std::int64_t{N} * threads)), threads,
               0, stream, source, from, target, to, width);
      };
      with_pack(width | from | to, start, source, target);
    });
  });
}

}  // namespace dropcycle::cuda
