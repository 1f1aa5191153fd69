// Bytes through device memory, as the stand-in counts them (stand_in/counters.hpp), of operations whose least is known.
#include <doctest/doctest.h>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/ops/ops.hpp"
#include "stand_in/counters.hpp"

using namespace dropcycle;

namespace {

Ops& ops() {
  static const auto made = make_ops("cuda", {});
  return *made;
}

// Bytes of what `call` asks for.
template <class Call>
stand_in::Counters counted(Call call) {
  ops().device().synchronize();
  const stand_in::Counters before = stand_in::counted();
  call();
  ops().device().synchronize();
  stand_in::Counters after = stand_in::counted();
  after.kernel_bytes -= before.kernel_bytes;
  after.product_bytes -= before.product_bytes;
  after.copied_bytes -= before.copied_bytes;
  after.kernels -= before.kernels;
  return after;
}

}  // namespace

TEST_CASE("a sum reads two tensors and writes one") {
  for (const std::int64_t n : {64, 1000, 100000}) {
    const OwnedTensor a(DType::bf16, {n, 8}, ops().device()), b(DType::bf16, {n, 8}, ops().device()),
        out(DType::bf16, {n, 8}, ops().device());
    const stand_in::Counters bytes = counted([&] { ops().add(a, b, out); });
    CHECK(bytes.kernels == 1);
    CHECK(bytes.kernel_bytes == 3 * 16 * n);
    CHECK(bytes.product_bytes + bytes.copied_bytes == 0);
  }
}

TEST_CASE("a product reads its operands and writes its result once") {
  const OwnedTensor x(DType::bf16, {96, 64}, ops().device()), w(DType::bf16, {32, 64}, ops().device()),
      y(DType::bf16, {96, 32}, ops().device());
  const stand_in::Counters bytes = counted([&] { ops().linear(x, {w, 1}, y); });
  CHECK(bytes.product_bytes == 2 * (96 * 64 + 32 * 64 + 96 * 32));
  CHECK(bytes.kernel_bytes + bytes.copied_bytes == 0);
}
