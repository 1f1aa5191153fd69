// gather_rows: out[i] = x[index[i]]. Limit: memory. A block copies one row (or 4 KiB of it) in 16-byte pieces, whatever
// its type. Bytes: the least possible.
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

// `width` in pieces.
template <class Piece>
__global__ void gather_rows(const Piece* x, const std::int32_t* index, Piece* out, std::int64_t width) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (column < width) out[blockIdx.x * width + column] = x[index[blockIdx.x] * width + column];
}

}  // namespace kernels

void gather_rows(cudaStream_t stream, const Tensor& x, const Tensor& index, const Tensor& out) {
  require(width_of(x) == width_of(out) && x.dtype == out.dtype, "gather_rows: {} of {} into {} of {}",
          to_string(x.shape), name(x.dtype), to_string(out.shape), name(out.dtype));
  const std::int64_t row_bytes = width_of(x) * size_bytes(x.dtype);
  const auto start = [&]<class Piece>() {
    const std::int64_t width = row_bytes / static_cast<std::int64_t>(sizeof(Piece));
    const unsigned threads = threads_for(width);
    launch(kernels::gather_rows<Piece>, blocks(index.elements(), divide_up(width, threads)), threads, 0, stream,
           static_cast<const Piece*>(x.data), elements<std::int32_t>(index), static_cast<Piece*>(out.data), width);
  };
  const auto by_pack = [&]<int N>() {
    if constexpr (N == kPack) return start.template operator()<Stored<std::uint16_t, kPack>>();
    if (size_bytes(x.dtype) % 4 == 0) return start.template operator()<std::uint32_t>();
    start.template operator()<std::uint16_t>();
  };
  with_pack(row_bytes / 2, by_pack, static_cast<const std::byte*>(x.data), static_cast<const std::byte*>(out.data));
}

}  // namespace dropcycle::cuda
