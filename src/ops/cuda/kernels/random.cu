// fill_normal and jitter: the numbers of RandomStream (core/random.hpp), bit for bit, drawn where they are used. A
// thread computes one Philox block, which gives four neighbouring numbers. Compiled without fused multiply-add: the
// doubles of core/normal.hpp are then the processor's. Limit: double arithmetic for fill_normal (75 operations a
// number, once in a run), memory for jitter. Bytes: the least possible.
#include "../../../core/normal.hpp"
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

struct Generator {
  std::uint32_t key0, key1;
  std::uint64_t stream;
};

struct Words {
  std::uint32_t values[4];
};

__device__ inline Words philox(const Generator& generator, std::uint64_t counter) {
  std::uint32_t a = static_cast<std::uint32_t>(counter), b = static_cast<std::uint32_t>(counter >> 32);
  std::uint32_t c = static_cast<std::uint32_t>(generator.stream),
                d = static_cast<std::uint32_t>(generator.stream >> 32);
  std::uint32_t key0 = generator.key0, key1 = generator.key1;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * a, product1 = std::uint64_t{0xCD9E8D57} * c;
    a = static_cast<std::uint32_t>(product1 >> 32) ^ b ^ key0;
    b = static_cast<std::uint32_t>(product1);
    c = static_cast<std::uint32_t>(product0 >> 32) ^ d ^ key1;
    d = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {{a, b, c, d}};
}

__device__ inline double normal_of(std::uint32_t bits) {
  const double q = (static_cast<std::int32_t>(bits ^ 0x80000000U) + 0.5) * 0x1p-32;  // u - 1/2, exactly
  if (fabs(q) <= normal::kCentral) return normal::central(q);
  return copysign(normal::tail(0.5 - fabs(q)), q);
}

// visit(i, bits) for the elements i of this thread's Philox block that lie in [0, n): numbers first + i.
template <class Visit>
__device__ void for_each_number(const Generator& generator, std::uint64_t first, std::int64_t n, Visit visit) {
  const std::uint64_t counter = first / 4 + static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const auto begin = static_cast<std::int64_t>(counter * 4 - first);
  if (begin >= n) return;
  const Words words = philox(generator, counter);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (begin + k >= 0 && begin + k < n) visit(begin + k, words.values[k]);
  }
}

template <class T>
__global__ void fill_normal(Generator generator, std::uint64_t first, double mean, double deviation, T* out,
                            std::int64_t n) {
  for_each_number(generator, first, n, [&](std::int64_t i, std::uint32_t bits) {
    out[i] = from_float<T>(static_cast<float>(mean + deviation * normal_of(bits)));
  });
}

template <class T>
__global__ void jitter(const T* x, Generator generator, std::uint64_t first, double amplitude, T* y, std::int64_t n) {
  for_each_number(generator, first, n, [&](std::int64_t i, std::uint32_t bits) {
    const double uniform = (bits + 0.5) * 0x1p-32;
    const double scale = 1.0 + amplitude * (2.0 * uniform - 1.0);
    y[i] = from_float<T>(static_cast<float>(to_float(x[i]) * scale));
  });
}

}  // namespace kernels

namespace {

kernels::Generator generator_of(const RandomStream& stream) {
  return {stream.key()[0], stream.key()[1], stream.stream()};
}

dim3 blocks_of_numbers(std::uint64_t first, std::int64_t n) {
  return blocks(n == 0 ? 0 : divide_up(divide_up(static_cast<std::int64_t>(first % 4) + n, 4), kThreads));
}

}  // namespace

void fill_normal(cudaStream_t stream, const RandomStream& random, std::uint64_t first, double mean,
                 double standard_deviation, const Tensor& out) {
  with_type(out, [&]<class T>() {
    launch(kernels::fill_normal<T>, blocks_of_numbers(first, out.elements()), kThreads, 0, stream, generator_of(random),
           first, mean, standard_deviation, elements<T>(out), out.elements());
  });
}

void jitter(cudaStream_t stream, const Tensor& x, const RandomStream& random, std::uint64_t first, double amplitude,
            const Tensor& y) {
  with_type(x, [&]<class T>() {
    launch(kernels::jitter<T>, blocks_of_numbers(first, x.elements()), kThreads, 0, stream, elements<T>(x),
           generator_of(random), first, amplitude, elements<T>(y), x.elements());
  });
}

}  // namespace dropcycle::cuda
