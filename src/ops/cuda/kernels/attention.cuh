// What the forward and the backward kernels of attention share. Queries and heads of one key/value head are numbered
// together: row r of (sequence b, key/value head g) is query r / G of the sequence and head g G + r % G, with
// G = Nq / Nkv, so that a tile of keys is read once for all heads that share it, also when there is one query.
//
// Blocks of four warps. A block owns kOwn rows (queries' or keys'), four a warp; the other side streams through shared
// memory in tiles of kTile, one a lane. A warp's four scores of a lane meet the streamed row once in registers; the
// weights that come of them pass through shared memory to the lanes that then own columns of the result.
#pragma once

#include <cmath>

#include "values.cuh"

namespace dropcycle::cuda::kernels {

constexpr int kOwn = 16, kOwnByWarp = 4, kTile = 32, kAttentionThreads = 128;

template <class T>
struct Matrix {
  T* data;
  std::int64_t stride;
};

template <class T>
struct Attention {
  Matrix<const T> q, k, v;
  const std::int32_t *first_key, *last_key;  // may be null
  const T *out, *dout;
  const float* lse;
  std::int64_t sequence, keys;
  int heads, kv_heads, head_size;
  float scale;

  __device__ int group() const { return heads / kv_heads; }
  __device__ std::int64_t rows() const { return sequence * group(); }
  // Of this block's sequence and key/value head.
  __device__ std::int64_t token(std::int64_t row) const { return blockIdx.z * sequence + row / group(); }
  __device__ std::int64_t head(std::int64_t row) const { return blockIdx.y * group() + row % group(); }
  __device__ const T* query(std::int64_t row) const { return q.data + token(row) * q.stride + head(row) * head_size; }
  __device__ const T* key(std::int64_t i) const {
    return k.data + (blockIdx.z * keys + i) * k.stride + static_cast<std::int64_t>(blockIdx.y) * head_size;
  }
  __device__ const T* value(std::int64_t i) const {
    return v.data + (blockIdx.z * keys + i) * v.stride + static_cast<std::int64_t>(blockIdx.y) * head_size;
  }
  // Where a row lies in out and dout, and in lse.
  __device__ std::int64_t place(std::int64_t row) const { return (token(row) * heads + head(row)) * head_size; }
  __device__ std::int64_t lse_place(std::int64_t row) const { return token(row) * heads + head(row); }
  // The keys that a row sees; none beyond the last row.
  __device__ std::int64_t first_seen(std::int64_t row) const {
    if (row >= rows()) return keys;
    return first_key != nullptr ? first_key[token(row)] : 0;
  }
  __device__ std::int64_t last_seen(std::int64_t row) const {
    if (row >= rows()) return -1;
    return last_key != nullptr ? last_key[token(row)] : keys - sequence + row / group();
  }
};

// tile[i][d] = row(first + i)[d] for i < kCount, as floats with `stride` a row; zeros beyond `end` and beyond the head.
// One element a thread: heads may begin anywhere, and a tile is used some 16 times.
template <int kCount, int kWidth, class Row>
__device__ void load_rows(std::int64_t first, std::int64_t end, int head_size, Row row, float* tile, int stride) {
  for (int i = static_cast<int>(threadIdx.x); i < kCount * kWidth; i += kAttentionThreads) {
    const int r = i / kWidth, d = i % kWidth;
    tile[r * stride + d] = first + r < end && d < head_size ? to_float(row(first + r)[d]) : 0.0F;
  }
}

// dots[j] = Σ_d own[j][d] streamed[d] for this warp's four rows `own`.
template <int kWidth>
__device__ void dot_rows(const float* own, const float* streamed, int head_size, float (&dots)[kOwnByWarp]) {
#pragma unroll
  for (int j = 0; j < kOwnByWarp; ++j) dots[j] = 0;
#pragma unroll 4
  for (int d = 0; d < head_size; ++d) {
    const float value = streamed[d];
#pragma unroll
    for (int j = 0; j < kOwnByWarp; ++j) dots[j] += own[j * kWidth + d] * value;
  }
}

// sums[j][c] += Σ_s weights[j][s] tile[s][lane + 32 c].
template <int kPerLane>
__device__ void add_rows(const float* weights, const float* tile, int stride, float (&sums)[kOwnByWarp][kPerLane]) {
  const unsigned lane = threadIdx.x % kWarp;
#pragma unroll 4
  for (int s = 0; s < kTile; ++s) {
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
      const float value = tile[s * stride + static_cast<int>(lane) + kWarp * c];
#pragma unroll
      for (int j = 0; j < kOwnByWarp; ++j) sums[j][c] += weights[j * kTile + s] * value;
    }
  }
}

}  // namespace dropcycle::cuda::kernels

namespace dropcycle::cuda {

template <class T>
kernels::Matrix<T> matrix_of(const Columns& x) {
  return {elements<std::remove_const_t<T>>(x.matrix) + x.first, x.matrix.shape[1]};
}

template <class T>
kernels::Attention<T> attention_of(const AttentionShape& s, const AttentionHeads& x, const AttentionMask& mask,
                                   const Tensor& out, const Tensor& lse, const Tensor& dout) {
  require(s.head_size <= 256 && s.heads % s.kv_heads == 0,
          "attention: {} query heads on {} key/value heads of {}: the cuda backend takes heads of 256 at most", s.heads,
          s.kv_heads, s.head_size);
  kernels::Attention<T> a{};
  a.q = matrix_of<const T>(x.q);
  a.k = matrix_of<const T>(x.k);
  a.v = matrix_of<const T>(x.v);
  a.first_key = elements<std::int32_t>(mask.first_key);
  a.last_key = elements<std::int32_t>(mask.last_key);
  a.out = elements<T>(out);
  a.dout = elements<T>(dout);
  a.lse = elements<float>(lse);
  a.sequence = s.sequence;
  a.keys = s.key_count();
  a.heads = static_cast<int>(s.heads);
  a.kv_heads = static_cast<int>(s.kv_heads);
  a.head_size = static_cast<int>(s.head_size);
  a.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.head_size)));
  return a;
}

// visit.operator()<kPerLane>(): columns of a head that each lane owns.
template <class Visit>
void with_head_size(std::int64_t head_size, Visit visit) {
  if (head_size <= 32) return visit.template operator()<1>();
  if (head_size <= 64) return visit.template operator()<2>();
  if (head_size <= 128) return visit.template operator()<4>();
  visit.template operator()<8>();
}

inline dim3 attention_blocks(const AttentionShape& s, std::int64_t own_rows) {
  return blocks(divide_up(own_rows, kernels::kOwn), s.kv_heads, s.batch);
}

}  // namespace dropcycle::cuda
