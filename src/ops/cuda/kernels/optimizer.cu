// The sum of squares in double, and AdamW (Loshchilov and Hutter, 2019) in one pass. Limit: memory (28 bytes a
// parameter for AdamW with bf16 weights). The sum: each of up to kParts blocks adds a part of x, and one block their
// sums; both in an order that the size alone gives. Bytes: the least possible.
#include <algorithm>
#include <cmath>

#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

template <int N, class T>
__global__ void square_parts(const T* x, std::int64_t n, double* parts) {
  double sum = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x * N;
  for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < n; i += step) {
    if (i + N <= n) {
      const auto values = load<N>(x + i);
#pragma unroll
      for (int k = 0; k < N; ++k) sum += static_cast<double>(values[k]) * values[k];
    } else {
      for (std::int64_t k = i; k < n; ++k) sum += static_cast<double>(to_float(x[k])) * to_float(x[k]);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void sum_parts(const double* parts, int count, double* out) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

struct AdamwConstants {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon, step_size, inv_sqrt_correction2, decay, gradient_scale;
};

// A pack of masters from their halves: bits(master) = 2^16 bits(weight) + low.
template <int N>
__device__ Pack<N> load_masters(const std::uint16_t* weight, const std::int16_t* low) {
  const auto upper = *reinterpret_cast<const Stored<std::uint16_t, N>*>(weight);
  const auto lower = *reinterpret_cast<const Stored<std::int16_t, N>*>(low);
  Pack<N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    pack[k] = __uint_as_float((static_cast<unsigned>(upper.values[k]) << 16) +
                              static_cast<unsigned>(static_cast<int>(lower.values[k])));
  }
  return pack;
}

// NaN stays NaN, without its lower bits. low may be null.
template <int N>
__device__ void store_masters(std::uint16_t* weight, std::int16_t* low, const Pack<N>& pack) {
  Stored<std::uint16_t, N> upper;
  Stored<std::int16_t, N> lower;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    unsigned word = __float_as_uint(pack[k]);
    if ((word & 0x7fffffffU) > 0x7f800000U) word = (word & 0xffff0000U) | 0x400000U;
    upper.values[k] = static_cast<std::uint16_t>((word + 0x8000U) >> 16);
    lower.values[k] = static_cast<std::int16_t>(static_cast<std::uint16_t>(word & 0xffffU));
  }
  *reinterpret_cast<Stored<std::uint16_t, N>*>(weight) = upper;
  if (low != nullptr) *reinterpret_cast<Stored<std::int16_t, N>*>(low) = lower;
}

template <int N>
__global__ void split_masters(const float* masters, std::uint16_t* weight, std::int16_t* low, std::int64_t n) {
  visit_pack<N>(n, [&](std::int64_t i, auto size) {
    store_masters(weight + i, low == nullptr ? nullptr : low + i, load<decltype(size)::value>(masters + i));
  });
}

template <int N>
__global__ void join_masters(const std::uint16_t* weight, const std::int16_t* low, float* masters, std::int64_t n) {
  visit_pack<N>(n, [&](std::int64_t i, auto size) {
    store(masters + i, load_masters<decltype(size)::value>(weight + i, low + i));
  });
}

// master: all of it, or null: it is in its halves.
template <int N>
__global__ void adamw(AdamwConstants c, const float* gradient, float* master, std::uint16_t* weight, std::int16_t* low,
                      float* m, float* v, std::int64_t n) {
  visit_pack<N>(n, [&](std::int64_t i, auto size) {
    constexpr int kCount = decltype(size)::value;
    const auto gradients = load<kCount>(gradient + i);
    auto first = load<kCount>(m + i), second = load<kCount>(v + i);
    auto values = master != nullptr ? load<kCount>(master + i) : load_masters<kCount>(weight + i, low + i);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float g = c.gradient_scale * gradients[k];
      first[k] = c.beta1 * first[k] + c.one_minus_beta1 * g;
      second[k] = c.beta2 * second[k] + c.one_minus_beta2 * (g * g);
      const float step = c.step_size * first[k] / (sqrtf(second[k]) * c.inv_sqrt_correction2 + c.epsilon);
      values[k] -= step + c.decay * values[k];
    }
    store(m + i, first);
    store(v + i, second);
    if (master != nullptr) {
      store(master + i, values);
    } else {
      store_masters(weight + i, low + i, values);
    }
  });
}

}  // namespace kernels

namespace {

// Of bf16 weights; null for an empty tensor.
std::uint16_t* halves(const Tensor& weight) {
  return weight ? reinterpret_cast<std::uint16_t*>(weight.as<BF16>()) : nullptr;
}

}  // namespace

void split_masters(cudaStream_t stream, const Tensor& masters, const Tensor& weight, const Tensor& low) {
  auto* lower = low ? low.as<std::int16_t>() : nullptr;
  const auto start = [&]<int N>() {
    launch(kernels::split_masters<N>, blocks_for<N>(masters.elements()), kThreads, 0, stream, elements<float>(masters),
           halves(weight), lower, masters.elements());
  };
  with_pack(kPack, start, elements<float>(masters), halves(weight), lower);
}

void join_masters(cudaStream_t stream, const Tensor& weight, const Tensor& low, const Tensor& masters) {
  const auto* lower = low.as<std::int16_t>();
  const auto start = [&]<int N>() {
    launch(kernels::join_masters<N>, blocks_for<N>(masters.elements()), kThreads, 0, stream, halves(weight), lower,
           elements<float>(masters), masters.elements());
  };
  with_pack(kPack, start, elements<float>(masters), halves(weight), lower);
}

void squared_norm(cudaStream_t stream, void* scratch, const Tensor& x, double* out) {
  constexpr std::int64_t kParts = 1024, kLeast = 4 * kPack * kThreads;  // elements that a block is worth
  const std::int64_t n = x.elements(), count = std::clamp<std::int64_t>(divide_up(n, kLeast), 1, kParts);
  auto* parts = static_cast<double*>(scratch);
  with_type(x, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::square_parts<N, T>, blocks(count), kThreads, 0, stream, elements<T>(x), n, parts);
    };
    with_pack(kPack, start, elements<T>(x));
  });
  launch(kernels::sum_parts, blocks(1), threads_for(count), 0, stream, parts, static_cast<int>(count), out);
}

void adamw(cudaStream_t stream, const AdamwArguments& a, const Tensor& gradient, const Tensor& master, const Tensor& m,
           const Tensor& v, const Tensor& weight) {
  const auto step = static_cast<double>(a.step);
  const kernels::AdamwConstants constants{
      .beta1 = static_cast<float>(a.beta1),
      .one_minus_beta1 = static_cast<float>(1.0 - a.beta1),
      .beta2 = static_cast<float>(a.beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - a.beta2),
      .epsilon = static_cast<float>(a.epsilon),
      .step_size = static_cast<float>(a.learning_rate / (1.0 - std::pow(a.beta1, step))),
      .inv_sqrt_correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(a.beta2, step))),
      .decay = static_cast<float>(a.learning_rate * a.weight_decay),
      .gradient_scale = static_cast<float>(a.gradient_scale)};
  auto* whole = weight ? nullptr : elements<float>(master);
  auto* low = weight ? master.as<std::int16_t>() : nullptr;
  const auto start = [&]<int N>() {
    launch(kernels::adamw<N>, blocks_for<N>(master.elements()), kThreads, 0, stream, constants,
           elements<float>(gradient), whole, halves(weight), low, elements<float>(m), elements<float>(v),
           master.elements());
  };
  with_pack(kPack, start, elements<float>(gradient), whole, halves(weight), low, elements<float>(m),
            elements<float>(v));
}

}  // namespace dropcycle::cuda
