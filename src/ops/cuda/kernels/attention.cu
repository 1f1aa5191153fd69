// Attention for what cuDNN doesn't take (f32, decoding with a cache, odd heads and masks): online softmax over tiles of
// 32 keys, all sums in float. Limit: shared memory, 36 loads for 4 x 32 multiplications a lane. Bytes: q, out and lse
// once; k and v once for each block of 16 rows, that is S G / 16 times, mostly from the L2 cache.
#include "../kernels.hpp"
#include "attention.cuh"

namespace dropcycle::cuda {
namespace kernels {

// lse may be null. Grid (blocks of rows, key/value heads, sequences).
template <int kPerLane, class T>
__global__ void __launch_bounds__(kAttentionThreads, 3) attention(Attention<T> a, T* out, float* lse) {
  constexpr int kWidth = kWarp * kPerLane, kStride = kWidth + 1;
  DYNAMIC_SHARED(float, q);        // [kOwn, kWidth]
  float* k = q + kOwn * kWidth;    // [kTile, kStride]
  float* v = k + kTile * kStride;  // [kTile, kStride]
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* weights = v + kTile * kStride + warp * kOwnByWarp * kTile;  // this warp's [kOwnByWarp, kTile]
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * kOwn, own = block + warp * kOwnByWarp;
  load_rows<kOwn, kWidth>(
      block, a.rows(), a.head_size, [&](std::int64_t row) { return a.query(row); }, q, kWidth);
  std::int64_t first = a.keys, last = -1;
  for (int r = 0; r < kOwn; ++r) {
    first = a.first_seen(block + r) < first ? a.first_seen(block + r) : first;
    last = a.last_seen(block + r) > last ? a.last_seen(block + r) : last;
  }
  std::int64_t from[kOwnByWarp], to[kOwnByWarp];
  float largest[kOwnByWarp], sum[kOwnByWarp] = {}, result[kOwnByWarp][kPerLane] = {};
#pragma unroll
  for (int j = 0; j < kOwnByWarp; ++j) {
    from[j] = a.first_seen(own + j);
    to[j] = a.last_seen(own + j);
    largest[j] = -INFINITY;
  }
  for (std::int64_t begin = first; begin <= last; begin += kTile) {
    __syncthreads();
    load_rows<kTile, kWidth>(
        begin, a.keys, a.head_size, [&](std::int64_t i) { return a.key(i); }, k, kStride);
    load_rows<kTile, kWidth>(
        begin, a.keys, a.head_size, [&](std::int64_t i) { return a.value(i); }, v, kStride);
    __syncthreads();
    float scores[kOwnByWarp];
    dot_rows<kWidth>(q + warp * kOwnByWarp * kWidth, k + lane * kStride, a.head_size, scores);
#pragma unroll
    for (int j = 0; j < kOwnByWarp; ++j) {
      const std::int64_t i = begin + lane;
      const bool seen = i >= from[j] && i <= to[j];
      const float top = fmaxf(largest[j], warp_max(seen ? scores[j] * a.scale : -INFINITY));
      const float weight = seen ? expf(scores[j] * a.scale - top) : 0.0F;
      const float correction = top == largest[j] ? 1.0F : expf(largest[j] - top);
      largest[j] = top;
      sum[j] = sum[j] * correction + weight;
      weights[j * kTile + static_cast<int>(lane)] = weight;
#pragma unroll
      for (int c = 0; c < kPerLane; ++c) result[j][c] *= correction;
    }
    __syncwarp();
    add_rows(weights, v, kStride, result);
  }
#pragma unroll
  for (int j = 0; j < kOwnByWarp; ++j) {
    const float all = warp_sum(sum[j]);
    if (own + j >= a.rows()) continue;
    if (lse != nullptr && lane == 0) lse[a.lse_place(own + j)] = largest[j] + logf(all);
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
      const int d = static_cast<int>(lane) + kWarp * c;
      if (d < a.head_size) out[a.place(own + j) + d] = from_float<T>(result[j][c] / all);
    }
  }
}

}  // namespace kernels

void attention(cudaStream_t stream, const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
               const Tensor& out, const Tensor& lse) {
  with_type(out, [&]<class T>() {
    with_head_size(shape.head_size, [&]<int kPerLane>() {
      constexpr std::size_t kWidth = kWarp * kPerLane;
      constexpr std::size_t kFloats =
          kernels::kOwn * kWidth + 2 * kernels::kTile * (kWidth + 1) + std::size_t{kernels::kOwn} * kernels::kTile;
      launch(kernels::attention<kPerLane, T>, attention_blocks(shape, shape.sequence * (shape.heads / shape.kv_heads)),
             kernels::kAttentionThreads, kFloats * sizeof(float), stream, attention_of<T>(shape, x, mask, {}, {}, {}),
             elements<T>(out), elements<float>(lse));
    });
  });
}

}  // namespace dropcycle::cuda
