// fill_zero, convert, add: each element once. Limit: memory; 16-byte accesses, a pack a thread, no loop, so that as
// many accesses as possible are under way. Bytes: the least possible.
#include "../kernels.hpp"
#include "values.cuh"

namespace dropcycle::cuda {
namespace kernels {

template <int N>
__global__ void fill_zero(unsigned char* x, std::int64_t size_bytes) {
  visit_pack<N>(size_bytes, [&](std::int64_t i, auto size) {
    *reinterpret_cast<Stored<unsigned char, size.value>*>(x + i) = Stored<unsigned char, size.value>{};
  });
}

template <int N, class From, class To>
__global__ void convert(const From* x, To* out, std::int64_t n) {
  visit_pack<N>(n, [&](std::int64_t i, auto size) { store(out + i, load<size.value>(x + i)); });
}

template <int N, class T>
__global__ void add(const T* a, const T* b, T* y, std::int64_t n) {
  visit_pack<N>(n, [&](std::int64_t i, auto size) {
    auto sum = load<size.value>(a + i);
    const auto other = load<size.value>(b + i);
#pragma unroll
    for (int k = 0; k < size.value; ++k) sum[k] += other[k];
    store(y + i, sum);
  });
}

}  // namespace kernels

void fill_zero(cudaStream_t stream, const Tensor& x) {
  auto* bytes = static_cast<unsigned char*>(x.data);
  const auto start = [&]<int N>() {
    launch(kernels::fill_zero<2 * N>, blocks_for<2 * N>(x.bytes()), kThreads, 0, stream, bytes, x.bytes());
  };
  with_pack(kPack, start, bytes);
}

void convert(cudaStream_t stream, const Tensor& x, const Tensor& out) {
  require(x.elements() == out.elements(), "convert: {} into {}", to_string(x.shape), to_string(out.shape));
  with_type(x, [&]<class From>() {
    with_type(out, [&]<class To>() {
      const auto start = [&]<int N>() {
        launch(kernels::convert<N, From, To>, blocks_for<N>(x.elements()), kThreads, 0, stream, elements<From>(x),
               elements<To>(out), x.elements());
      };
      with_pack(kPack, start, elements<From>(x), elements<To>(out));
    });
  });
}

void add(cudaStream_t stream, const Tensor& a, const Tensor& b, const Tensor& y) {
  require(a.elements() == y.elements() && b.elements() == y.elements(), "add: {} and {} into {}", to_string(a.shape),
          to_string(b.shape), to_string(y.shape));
  with_type(y, [&]<class T>() {
    const auto start = [&]<int N>() {
      launch(kernels::add<N, T>, blocks_for<N>(y.elements()), kThreads, 0, stream, elements<T>(a), elements<T>(b),
             elements<T>(y), y.elements());
    };
    with_pack(kPack, start, elements<T>(a), elements<T>(b), elements<T>(y));
  });
}

}  // namespace dropcycle::cuda
