// sort_rows: the counting sort that sends tokens to experts. With i = t K + k: row i's place is the number of rows with
// a lower expert, or with the same and a lower i. counts[e]: rows of expert e; slots[t,k]: the place;
// token_of_row[place] = t. Limit: latency. A warp takes a tile of rows, 32 at a time in order, and finds a row's rank
// among its equals by
// __match_any_sync; tiles are counted, the counts summed up by one block, and the tiles placed. No atomics: the order
// is always the same. Bytes: experts twice (8 T K), the results, and 12 E a tile, of which there are at most 64.
#include <algorithm>

#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

// visit(i, expert, rank, equals) for this tile's rows in order, 32 at a time: `rank` equals of lower i among the 32.
// A lane without a row has expert -1. All see what visit wrote for the 32 before.
template <class Visit>
__device__ void for_each_row(const std::int32_t* experts, std::int64_t rows, std::int64_t tile_rows, Visit visit) {
  const unsigned lane = threadIdx.x;
  const std::int64_t first = blockIdx.x * tile_rows, last = first + tile_rows < rows ? first + tile_rows : rows;
  for (std::int64_t begin = first; begin < last; begin += kWarp) {
    const std::int64_t i = begin + lane;
    const std::int32_t expert = i < last ? experts[i] : -1;
    const unsigned equals = __match_any_sync(kAllLanes, expert);
    visit(i, expert, __popc(equals & ((1U << lane) - 1)), __popc(equals));
    __syncwarp();
  }
}

// tile_counts[tile, e]. Blocks of one warp.
__global__ void count_rows(const std::int32_t* experts, std::int32_t* tile_counts, std::int64_t rows,
                           std::int64_t tile_rows, int count) {
  DYNAMIC_SHARED(std::int32_t, counters);
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kWarp) counters[e] = 0;
  __syncwarp();
  for_each_row(experts, rows, tile_rows, [&](std::int64_t, std::int32_t expert, int rank, int equals) {
    if (expert >= 0 && rank == 0) counters[expert] += equals;
  });
  std::int32_t* to = tile_counts + static_cast<std::int64_t>(blockIdx.x) * count;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kWarp) to[e] = counters[e];
}

// counts[e] = Σ over tiles; tile_counts become the place of each tile's first row of e. One block, a thread an expert.
__global__ void place_tiles(std::int32_t* tile_counts, std::int64_t tiles, int count, std::int32_t* counts) {
  DYNAMIC_SHARED(std::int32_t, totals);
  const int e = static_cast<int>(threadIdx.x);
  std::int32_t total = 0;
  if (e < count) {
#pragma unroll 8
    for (std::int64_t tile = 0; tile < tiles; ++tile) total += tile_counts[tile * count + e];
    totals[e] = total;
  }
  __syncthreads();
  if (e >= count) return;
  std::int32_t place = 0;
#pragma unroll 8
  for (int lower = 0; lower < e; ++lower) place += totals[lower];
  counts[e] = total;
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int32_t here = tile_counts[tile * count + e];
    tile_counts[tile * count + e] = place;
    place += here;
  }
}

__global__ void place_rows(const std::int32_t* experts, const std::int32_t* tile_places, std::int32_t* token_of_row,
                           std::int32_t* slots, std::int64_t rows, std::int64_t tile_rows, int count, int chosen) {
  DYNAMIC_SHARED(std::int32_t, places);
  const std::int32_t* from = tile_places + static_cast<std::int64_t>(blockIdx.x) * count;
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kWarp) places[e] = from[e];
  __syncwarp();
  for_each_row(experts, rows, tile_rows, [&](std::int64_t i, std::int32_t expert, int rank, int equals) {
    const std::int32_t place = expert >= 0 ? places[expert] + rank : 0;
    __syncwarp();  // read by all of its equals
    if (expert < 0) return;
    if (rank == 0) places[expert] += equals;
    slots[i] = place;
    token_of_row[place] = static_cast<std::int32_t>(i / chosen);
  });
}

}  // namespace kernels

void sort_rows(cudaStream_t stream, void* scratch, const Tensor& experts, const Tensor& counts,
               const Tensor& token_of_row, const Tensor& slots) {
  constexpr std::int64_t kMostTiles = 64, kLeastRows = 1024, kMostExperts = 1024;
  const std::int64_t rows = experts.elements(), count = counts.elements(), chosen = width_of(experts);
  require(count <= kMostExperts && rows <= INT32_MAX && token_of_row.elements() == rows && slots.elements() == rows,
          "sort_rows: {} rows of {} experts", rows, count);
  const std::int64_t tile_rows = std::max(kLeastRows, divide_up(divide_up(rows, kMostTiles), kWarp) * kWarp);
  const std::int64_t tiles = divide_up(rows, tile_rows);
  auto* tile_counts = static_cast<std::int32_t*>(scratch);
  const auto bytes = static_cast<std::size_t>(count) * sizeof(std::int32_t);
  launch(kernels::count_rows, blocks(tiles), kWarp, bytes, stream, elements<std::int32_t>(experts), tile_counts, rows,
         tile_rows, static_cast<int>(count));
  launch(kernels::place_tiles, blocks(1), threads_for(count, 1024), bytes, stream, tile_counts, tiles,
         static_cast<int>(count), elements<std::int32_t>(counts));
  launch(kernels::place_rows, blocks(tiles), kWarp, bytes, stream, elements<std::int32_t>(experts), tile_counts,
         elements<std::int32_t>(token_of_row), elements<std::int32_t>(slots), rows, tile_rows, static_cast<int>(count),
         static_cast<int>(chosen));
}

}  // namespace dropcycle::cuda
