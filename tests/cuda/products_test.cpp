// Products of the cuda backend, through the stand-in: what the tests of Ops don't reach. Many small experts become one
// grouped call; nothing is asked or allocated once the sizes are known; attention in parts is attention.
#include <doctest/doctest.h>

#include <cmath>

#include "../../src/ops/cuda/attention.hpp"
#include "../../src/ops/cuda/products.hpp"
#include "../../src/ops/reference/reference_ops.hpp"
#include "dropcycle/device/arena.hpp"
#include "stand_in/counters.hpp"

using namespace dropcycle;

namespace {

Device& gpu() { return cuda_device(0); }

// The same values on the host and on the GPU.
struct Pair {
  Pair(DType type, const Shape& shape, int seed) : host(type, shape), device(type, shape, gpu()) {
    std::vector<float> values(static_cast<std::size_t>(shape.elements()));
    RandomStream(3, Purpose::test, "pair", static_cast<std::uint64_t>(seed))
        .fill_normal(Tensor(values.data(), shape), 0, 0, 1);
    ReferenceOps().convert(Tensor(values.data(), shape), host);
    gpu().upload(device.view().data, host.view().data, host.view().bytes());
  }
  OwnedTensor host, device;
};

std::vector<double> values(const Tensor& host) {
  std::vector<double> result;
  for (std::int64_t i = 0; i < host.elements(); ++i) {
    result.push_back(host.dtype == DType::bf16 ? static_cast<float>(host.as<BF16>()[i]) : host.as<float>()[i]);
  }
  return result;
}

// Relative to the reference's root mean square.
double error(const Pair& pair) {
  const HostCopy copy(gpu(), pair.device);
  const auto found = values(copy), want = values(pair.host);
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (found[i] - want[i]) * (found[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}

constexpr double kBf16 = 0x1p-8;

}  // namespace

TEST_CASE("experts, few and many, with few and many rows") {
  cuda::Products products(as_cuda(gpu()));
  ReferenceOps reference;
  for (const std::int64_t experts : {3, 9, 24}) {
    for (const std::int64_t most : {1, 40, 300}) {
      const std::int64_t in = 24, out = 40;
      std::vector<std::int64_t> offsets = {0};
      for (std::int64_t e = 0; e < experts; ++e) offsets.push_back(offsets.back() + (e * 7) % (most + 1));
      const std::int64_t rows = offsets.back();
      INFO(experts, " experts, ", rows, " rows");
      Pair x(DType::bf16, {rows, in}, 1), w(DType::bf16, {experts, out, in}, 2), y(DType::bf16, {rows, out}, 3);
      Pair dx(DType::bf16, {rows, in}, 4), dw(DType::f32, {experts, out, in}, 5), wide(DType::f32, {rows, out}, 6);
      reference.grouped_linear(x.host, offsets, {w.host}, y.host);
      reference.grouped_linear(x.host, offsets, {w.host}, wide.host);
      reference.grouped_linear_dx(y.host, offsets, {w.host}, dx.host);
      reference.grouped_linear_dw(y.host, x.host, offsets, dw.host);
      products.grouped_linear(x.device, offsets, w.device, y.device);
      products.grouped_linear(x.device, offsets, w.device, wide.device);
      products.grouped_linear_dx(y.device, offsets, w.device, dx.device);
      products.grouped_linear_dw(y.device, x.device, offsets, dw.device);
      CHECK(error(y) <= kBf16);
      CHECK(error(wide) <= 1e-6);
      CHECK(error(dx) <= 2 * kBf16);
      CHECK(error(dw) <= 2 * kBf16);
    }
  }
}

TEST_CASE("known sizes ask for no memory, whatever the experts' rows are") {
  cuda::Products products(as_cuda(gpu()));
  const std::int64_t experts = 12, in = 16, out = 32, rows = 600;
  Pair x(DType::bf16, {rows, in}, 1), w(DType::bf16, {experts, out, in}, 2), y(DType::bf16, {rows, out}, 3);
  Pair dw(DType::f32, {experts, out, in}, 4);
  const auto step = [&](std::int64_t first) {
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(experts), first);
    offsets.front() = 0;
    offsets.push_back(rows);
    products.grouped_linear(x.device, offsets, w.device, y.device);
    products.grouped_linear_dw(y.device, x.device, offsets, dw.device);
  };
  step(1);
  const auto before = stand_in::counted().allocations;
  for (std::int64_t first = 2; first < rows; first += 31) step(first);
  CHECK(stand_in::counted().allocations == before);
}

TEST_CASE("attention whose workspace is too large for one call is the same in parts") {
  const AttentionShape s{2, 50, 6, 3, 16};
  const double limits[] = {1e9, 250e3, 100e3};  // a head needs 41 kB
  CHECK(cuda::attention_part(s, true, limits[0]) == cuda::AttentionPart{2, 3});
  CHECK(cuda::attention_part(s, true, limits[1]) == cuda::AttentionPart{1, 3});
  CHECK(cuda::attention_part(s, true, limits[2]) == cuda::AttentionPart{1, 1});
  const std::int64_t width = s.heads * s.head_size;
  for (const bool documents : {false, true}) {
    std::vector<std::int32_t> first;
    for (std::int64_t t = 0; t < s.tokens(); ++t) first.push_back(static_cast<std::int32_t>(t % s.sequence / 20 * 20));
    OwnedTensor first_key(DType::i32, {s.tokens()}, gpu());
    gpu().upload(first_key.view().data, first.data(), first_key.view().bytes());
    const AttentionMask mask{documents ? first_key.view() : Tensor{}, {}};
    Pair qkv(DType::bf16, {s.tokens(), s.qkv_width()}, 1), dout(DType::bf16, {s.tokens(), width}, 2);
    OwnedTensor want_out(DType::bf16, {s.tokens(), width}), want_lse(DType::f32, {s.tokens(), s.heads});
    Tensor on_host(first.data(), {s.tokens()});
    const AttentionMask host_mask{documents ? on_host : Tensor{}, {}};
    ReferenceOps reference;
    reference.attention(s, packed_heads(s, qkv.host), host_mask, want_out, want_lse);
    std::vector<std::vector<double>> results;
    for (const double limit : limits) {
      cuda::FlashAttention attention(as_cuda(gpu()), true, limit);
      Pair out(DType::bf16, {s.tokens(), width}, 3), lse(DType::f32, {s.tokens(), s.heads}, 4);
      Pair dqkv(DType::bf16, {s.tokens(), s.qkv_width()}, 5);
      const AttentionHeads x = packed_heads(s, qkv.device), dx = packed_heads(s, dqkv.device);
      REQUIRE(attention.takes(s, x, mask, dx));
      attention.forward(s, x, mask, out.device, lse.device);
      attention.backward(s, x, mask, out.device, lse.device, dout.device, dx);
      results.push_back(values(HostCopy(gpu(), dqkv.device)));
      reference.attention_backward(s, packed_heads(s, qkv.host), host_mask, want_out, want_lse, dout.host,
                                   packed_heads(s, dqkv.host));
      CHECK(error(dqkv) <= 3 * kBf16);
    }
    CHECK(results[1] == results[0]);
    CHECK(results[2] == results[0]);
  }
}
