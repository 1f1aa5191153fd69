// The adjoint of attention: with p = exp(scale q·k - lse), delta = dout·out, ds = scale p (dout·v - delta):
//   dq = Σ_s ds k,   dk = Σ_t ds q,   dv = Σ_t p dout.
// Two kernels, one that owns queries and one that owns keys, so that every sum belongs to one warp and has one order.
// Limit: shared memory. Bytes: as in attention.cu for dq; for dk and dv q, dout and out once for each block of 16 keys.
#include "../kernels.hpp"
#include "attention.cuh"

namespace dropcycle::cuda {
namespace kernels {

// Σ_d dout out of a row, for all lanes.
template <class T>
__device__ float delta_of(const Attention<T>& a, std::int64_t row) {
  float sum = 0;
  for (int d = static_cast<int>(threadIdx.x % kWarp); row < a.rows() && d < a.head_size; d += kWarp) {
    sum += to_float(a.dout[a.place(row) + d]) * to_float(a.out[a.place(row) + d]);
  }
  return warp_sum(sum);
}

template <int kPerLane, class T>
__global__ void __launch_bounds__(kAttentionThreads, 3) attention_dq(Attention<T> a, Matrix<T> dq) {
  constexpr int kWidth = kWarp * kPerLane, kStride = kWidth + 1;
  DYNAMIC_SHARED(float, q);         // [kOwn, kWidth]
  float* dout = q + kOwn * kWidth;  // [kOwn, kWidth]
  float* k = dout + kOwn * kWidth;  // [kTile, kStride]
  float* v = k + kTile * kStride;   // [kTile, kStride]
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* weights = v + kTile * kStride + warp * kOwnByWarp * kTile;
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * kOwn, own = block + warp * kOwnByWarp;
  load_rows<kOwn, kWidth>(
      block, a.rows(), a.head_size, [&](std::int64_t row) { return a.query(row); }, q, kWidth);
  load_rows<kOwn, kWidth>(
      block, a.rows(), a.head_size, [&](std::int64_t row) { return a.dout + a.place(row); }, dout, kWidth);
  std::int64_t first = a.keys, last = -1;
  for (int r = 0; r < kOwn; ++r) {
    first = a.first_seen(block + r) < first ? a.first_seen(block + r) : first;
    last = a.last_seen(block + r) > last ? a.last_seen(block + r) : last;
  }
  std::int64_t from[kOwnByWarp], to[kOwnByWarp];
  float lse[kOwnByWarp], delta[kOwnByWarp], result[kOwnByWarp][kPerLane] = {};
#pragma unroll
  for (int j = 0; j < kOwnByWarp; ++j) {
    from[j] = a.first_seen(own + j);
    to[j] = a.last_seen(own + j);
    lse[j] = own + j < a.rows() ? a.lse[a.lse_place(own + j)] : 0;
    delta[j] = delta_of(a, own + j);
  }
  for (std::int64_t begin = first; begin <= last; begin += kTile) {
    __syncthreads();
    load_rows<kTile, kWidth>(
        begin, a.keys, a.head_size, [&](std::int64_t i) { return a.key(i); }, k, kStride);
    load_rows<kTile, kWidth>(
        begin, a.keys, a.head_size, [&](std::int64_t i) { return a.value(i); }, v, kStride);
    __syncthreads();
    float scores[kOwnByWarp], dweights[kOwnByWarp];
    dot_rows<kWidth>(q + warp * kOwnByWarp * kWidth, k + lane * kStride, a.head_size, scores);
    dot_rows<kWidth>(dout + warp * kOwnByWarp * kWidth, v + lane * kStride, a.head_size, dweights);
#pragma unroll
    for (int j = 0; j < kOwnByWarp; ++j) {
      const std::int64_t i = begin + lane;
      const float p = i >= from[j] && i <= to[j] ? expf(scores[j] * a.scale - lse[j]) : 0.0F;
      weights[j * kTile + static_cast<int>(lane)] = a.scale * p * (dweights[j] - delta[j]);
    }
    __syncwarp();
    add_rows(weights, k, kStride, result);
  }
#pragma unroll
  for (int j = 0; j < kOwnByWarp; ++j) {
    if (own + j >= a.rows()) continue;
    T* row = dq.data + a.token(own + j) * dq.stride + a.head(own + j) * a.head_size;
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
      const int d = static_cast<int>(lane) + kWarp * c;
      if (d < a.head_size) row[d] = from_float<T>(result[j][c]);
    }
  }
}

// Grid (blocks of keys, key/value heads, sequences). G is the type of dk and dv.
template <int kPerLane, class T, class G>
__global__ void __launch_bounds__(kAttentionThreads, 3) attention_dkv(Attention<T> a, Matrix<G> dk, Matrix<G> dv) {
  constexpr int kWidth = kWarp * kPerLane, kStride = kWidth + 1;
  DYNAMIC_SHARED(float, k);                // [kOwn, kWidth]
  float* v = k + kOwn * kWidth;            // [kOwn, kWidth]
  float* q = v + kOwn * kWidth;            // [kTile, kStride]
  float* dout = q + kTile * kStride;       // [kTile, kStride]
  float* deltas = dout + kTile * kStride;  // [kTile]
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* p = deltas + kTile + warp * 2 * kOwnByWarp * kTile;  // this warp's [kOwnByWarp, kTile]
  float* ds = p + kOwnByWarp * kTile;                         // the same
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * kOwn, own = block + warp * kOwnByWarp;
  load_rows<kOwn, kWidth>(
      block, a.keys, a.head_size, [&](std::int64_t i) { return a.key(i); }, k, kWidth);
  load_rows<kOwn, kWidth>(
      block, a.keys, a.head_size, [&](std::int64_t i) { return a.value(i); }, v, kWidth);
  float dk_sums[kOwnByWarp][kPerLane] = {}, dv_sums[kOwnByWarp][kPerLane] = {};
  for (std::int64_t begin = 0; begin < a.rows(); begin += kTile) {
    const std::int64_t row = begin + lane, from = a.first_seen(row), to = a.last_seen(row);
    // The same in every warp: whether any row of the tile sees any key of the block.
    if (__ballot_sync(kAllLanes, from < block + kOwn && to >= block) == 0) continue;
    __syncthreads();
    load_rows<kTile, kWidth>(
        begin, a.rows(), a.head_size, [&](std::int64_t r) { return a.query(r); }, q, kStride);
    load_rows<kTile, kWidth>(
        begin, a.rows(), a.head_size, [&](std::int64_t r) { return a.dout + a.place(r); }, dout, kStride);
    // Four threads a row add up its delta.
    const std::int64_t delta_row = begin + threadIdx.x / 4;
    float delta = 0;
    for (int d = static_cast<int>(threadIdx.x % 4); delta_row < a.rows() && d < a.head_size; d += 4) {
      delta += to_float(a.dout[a.place(delta_row) + d]) * to_float(a.out[a.place(delta_row) + d]);
    }
    delta += __shfl_xor_sync(kAllLanes, delta, 1);
    delta += __shfl_xor_sync(kAllLanes, delta, 2);
    if (threadIdx.x % 4 == 0) deltas[threadIdx.x / 4] = delta;
    __syncthreads();
    float scores[kOwnByWarp], dweights[kOwnByWarp];
    dot_rows<kWidth>(k + warp * kOwnByWarp * kWidth, q + lane * kStride, a.head_size, scores);
    dot_rows<kWidth>(v + warp * kOwnByWarp * kWidth, dout + lane * kStride, a.head_size, dweights);
    const float lse = row < a.rows() ? a.lse[a.lse_place(row)] : 0;
#pragma unroll
    for (int j = 0; j < kOwnByWarp; ++j) {
      const float weight = own + j >= from && own + j <= to ? expf(scores[j] * a.scale - lse) : 0.0F;
      p[j * kTile + static_cast<int>(lane)] = weight;
      ds[j * kTile + static_cast<int>(lane)] = a.scale * weight * (dweights[j] - deltas[lane]);
    }
    __syncwarp();
    add_rows(p, dout, kStride, dv_sums);
    add_rows(ds, q, kStride, dk_sums);
  }
#pragma unroll
  for (int j = 0; j < kOwnByWarp; ++j) {
    if (own + j >= a.keys) continue;
    const std::int64_t row = blockIdx.z * a.keys + own + j,
                       column = static_cast<std::int64_t>(blockIdx.y) * a.head_size;
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
      const int d = static_cast<int>(lane) + kWarp * c;
      if (d >= a.head_size) continue;
      dk.data[row * dk.stride + column + d] = from_float<G>(dk_sums[j][c]);
      dv.data[row * dv.stride + column + d] = from_float<G>(dv_sums[j][c]);
    }
  }
}

}  // namespace kernels

void attention_backward(cudaStream_t stream, const AttentionShape& shape, const AttentionHeads& x,
                        const AttentionMask& mask, const Tensor& out, const Tensor& lse, const Tensor& dout,
                        const AttentionHeads& dx) {
  require(dx.k.matrix.dtype == dx.v.matrix.dtype, "attention_backward: dk of {}, dv of {}", name(dx.k.matrix.dtype),
          name(dx.v.matrix.dtype));
  with_type(out, [&]<class T>() {
    with_head_size(shape.head_size, [&]<int kPerLane>() {
      constexpr std::size_t kWidth = kWarp * kPerLane;
      constexpr std::size_t kRows = 2 * kernels::kOwn * kWidth + 2 * kernels::kTile * (kWidth + 1);
      constexpr std::size_t kWeights = std::size_t{kernels::kOwn} * kernels::kTile;
      const auto a = attention_of<T>(shape, x, mask, out, lse, dout);
      launch(kernels::attention_dq<kPerLane, T>,
             attention_blocks(shape, shape.sequence * (shape.heads / shape.kv_heads)), kernels::kAttentionThreads,
             (kRows + kWeights) * sizeof(float), stream, a, matrix_of<T>(dx.q));
      with_type(dx.k.matrix, [&]<class G>() {
        launch(kernels::attention_dkv<kPerLane, T, G>, attention_blocks(shape, shape.key_count()),
               kernels::kAttentionThreads, (kRows + kernels::kTile + 2 * kWeights) * sizeof(float), stream, a,
               matrix_of<G>(dx.k), matrix_of<G>(dx.v));
      });
    });
  });
}

}  // namespace dropcycle::cuda
