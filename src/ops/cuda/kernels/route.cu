// route: the K largest of E logits, their weights, the softmax over all and its log-sum-exp; and the adjoint
//   dlogits = (dweights through the mode) + p_e (a_e - Σ_j p_j a_j) + 2 z lse p_e.
// Limit: memory. A warp takes a token, its lanes hold the logits; the largest is found K times by a butterfly over
// (logit, expert) packed into 64 bits, in which the larger logit is the larger number and of equal ones the lower
// expert. Bytes: the least possible.
#include <bit>

#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

// Ordered as the values are, NaN below all: 0 is below every key.
__device__ inline unsigned long long order_key(float value, std::int32_t expert) {
  const float comparable = value != value ? -INFINITY : value + 0.0F;  // -0 becomes 0
  const auto bits = std::bit_cast<std::uint32_t>(comparable);
  const std::uint32_t ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffU - static_cast<std::uint32_t>(expert));
}

__device__ inline std::int64_t token_of_warp() {
  return static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
}

// E <= 32 kPerLane, K <= 32.
template <int kPerLane>
__global__ void route(const float* logits, bool softmax_first, std::int32_t* experts, float* weights,
                      float* probabilities, float* lse, std::int64_t tokens, int count, int chosen) {
  const std::int64_t token = token_of_warp();
  if (token >= tokens) return;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const float* row = logits + token * count;
  float values[kPerLane];
  unsigned long long keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + i * kWarp;
    values[i] = e < count ? row[e] : -INFINITY;
    keys[i] = e < count ? order_key(values[i], e) : 0;
  }
  float top = 0, kept = 0, own_weight = 0;
  std::int32_t own_expert = 0;
  for (int k = 0; k < chosen; ++k) {
    unsigned long long best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = keys[i] > best ? keys[i] : best;
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      const auto other = __shfl_xor_sync(kAllLanes, best, lanes);
      best = other > best ? other : best;
    }
    const auto expert = static_cast<std::int32_t>(0xffffffffU - static_cast<std::uint32_t>(best));
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) keys[i] = keys[i] == best ? 0 : keys[i];
    const float value = row[expert];
    if (k == 0) top = value;
    const float numerator = expf(value - top);
    kept += numerator;
    if (k == lane) {
      own_expert = expert;
      own_weight = numerator;
    }
  }
  float all = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane + i * kWarp >= count) continue;
    values[i] = expf(values[i] - top);
    all += values[i];
  }
  all = warp_sum(all);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane + i * kWarp < count) probabilities[token * count + lane + i * kWarp] = values[i] / all;
  }
  if (lane < chosen) {
    experts[token * chosen + lane] = own_expert;
    weights[token * chosen + lane] = own_weight / (softmax_first ? all : kept);
  }
  if (lane == 0) lse[token] = top + logf(all);
}

// dprobabilities may be null.
__global__ void route_backward(bool softmax_first, const std::int32_t* experts, const float* weights,
                               const float* probabilities, const float* lse, const float* dweights,
                               const float* dprobabilities, float z, float* dlogits, std::int64_t tokens, int count,
                               int chosen) {
  const std::int64_t token = token_of_warp();
  if (token >= tokens) return;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const std::int32_t* ids = experts + token * chosen;
  const float *w = weights + token * chosen, *dw = dweights + token * chosen, *p = probabilities + token * count;
  float dot = 0, mean = 0;
  for (int k = 0; k < chosen; ++k) dot += dw[k] * w[k];
  if (dprobabilities != nullptr) {
    for (int e = lane; e < count; e += kWarp) mean += p[e] * dprobabilities[e];
    mean = warp_sum(mean);
  }
  const float pull = 2.0F * z * lse[token];
  for (int e = lane; e < count; e += kWarp) {
    float d = p[e] * ((dprobabilities != nullptr ? dprobabilities[e] - mean : 0.0F) + pull);
    if (softmax_first) d -= p[e] * dot;
    for (int k = 0; k < chosen; ++k) {
      if (ids[k] == e) d += softmax_first ? w[k] * dw[k] : w[k] * (dw[k] - dot);
    }
    dlogits[token * count + e] = d;
  }
}

}  // namespace kernels

void route(cudaStream_t stream, const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
           const Tensor& probabilities, const Tensor& lse) {
  const std::int64_t count = width_of(logits), chosen = width_of(experts), tokens = rows_of(logits);
  require(count <= 256 && chosen <= kWarp && chosen <= count,
          "route: {} of {} experts: the cuda backend takes {} of 256 at most", chosen, count, kWarp);
  const auto start = [&]<int kPerLane>() {
    launch(kernels::route<kPerLane>, blocks(divide_up(tokens, kThreads / kWarp)), kThreads, 0, stream,
           elements<float>(logits), mode == RouterMode::softmax_topk, elements<std::int32_t>(experts),
           elements<float>(weights), elements<float>(probabilities), elements<float>(lse), tokens,
           static_cast<int>(count), static_cast<int>(chosen));
  };
  if (count <= 32) return start.template operator()<1>();
  if (count <= 64) return start.template operator()<2>();
  start.template operator()<8>();
}

void route_backward(cudaStream_t stream, RouterMode mode, const Tensor& experts, const Tensor& weights,
                    const Tensor& probabilities, const Tensor& lse, const Tensor& dweights,
                    const Tensor& dprobabilities, double z, const Tensor& dlogits) {
  const std::int64_t tokens = rows_of(dlogits);
  launch(kernels::route_backward, blocks(divide_up(tokens, kThreads / kWarp)), kThreads, 0, stream,
         mode == RouterMode::softmax_topk, elements<std::int32_t>(experts), elements<float>(weights),
         elements<float>(probabilities), elements<float>(lse), elements<float>(dweights),
         elements<float>(dprobabilities), static_cast<float>(z), elements<float>(dlogits), tokens,
         static_cast<int>(width_of(dlogits)), static_cast<int>(width_of(experts)));
}

}  // namespace dropcycle::cuda
