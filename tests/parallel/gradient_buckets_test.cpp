#include "dropcycle/parallel/gradient_buckets.hpp"

#include <doctest/doctest.h>
#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

using namespace dropcycle;

namespace {

Groups all_ranks() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return Groups::over_mpi(Topology({}, size));
}

// Odd sizes, empty parameters, one larger than a bucket.
const std::vector<std::int64_t> kOffsets = {0, 3, 1000, 1000, 1007, 9001, 9002, 12345, 20011};
constexpr std::int64_t kElements = 20011;

std::vector<float> gradients_of(int rank, int step) {
  std::vector<float> result(static_cast<std::size_t>(kElements));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = std::sin(static_cast<float>(i) * 0.37F + static_cast<float>(rank * 5 + step * 11) + 0.1F);
  }
  return result;
}

std::int64_t end_of(std::size_t parameter) {
  return parameter + 1 < kOffsets.size() ? kOffsets[parameter + 1] : kElements;
}

// Sums the ranks' gradients with the parameters marked in the order given.
std::vector<float> summed(Communicator& group, int step, const BucketOptions& options,
                          const std::vector<std::size_t>& order, int steps_before = 0) {
  std::vector<float> g(static_cast<std::size_t>(kElements));
  GradientBuckets buckets(group, Tensor(g.data(), Shape{kElements}), kOffsets, options);
  for (int s = step - steps_before; s <= step; ++s) {
    std::ranges::copy(gradients_of(group.rank(), s), g.begin());
    for (const std::size_t parameter : order) buckets.mark_ready(kOffsets[parameter], end_of(parameter));
    buckets.finish();
  }
  return g;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<std::size_t> backward_order() {
  std::vector<std::size_t> order(kOffsets.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
  return order;
}

}  // namespace

TEST_CASE("the sum over the group, in buckets of any size") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  std::vector<double> expected(static_cast<std::size_t>(kElements));
  for (int r = 0; r < group.size(); ++r) {
    const std::vector<float> g = gradients_of(r, 0);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += g[i];
  }
  for (const std::int64_t bucket_bytes : {1, 4000, 40000, 1 << 20}) {
    const std::vector<float> g = summed(group, 0, {.bucket_bytes = bucket_bytes}, backward_order());
    double worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(static_cast<double>(g[i]) - expected[i]));
    }
    CHECK((worst <= 1e-6));
  }
}

TEST_CASE("buckets end at parameters and cover the array") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  std::vector<float> g(static_cast<std::size_t>(kElements));
  const auto count = [&](std::int64_t bucket_bytes) {
    return GradientBuckets(group, Tensor(g.data(), Shape{kElements}), kOffsets, {.bucket_bytes = bucket_bytes}).count();
  };
  const bool alone = group.size() == 1;
  CHECK(count(1) == (alone ? 0 : 7));        // one per parameter that isn't empty
  CHECK(count(32000) == (alone ? 0 : 3));    // 44036, 32008 and 4000 bytes
  CHECK(count(1 << 20) == (alone ? 0 : 1));  // all together
}

TEST_CASE("neither overlap nor the order of arrival nor earlier steps change a bit") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  for (const std::int64_t bucket_bytes : {1, 4000, 40000}) {
    const std::vector<float> reference = summed(group, 4, {.bucket_bytes = bucket_bytes, .overlap = false}, {});
    CHECK(same_bits(reference, summed(group, 4, {.bucket_bytes = bucket_bytes}, backward_order())));
    CHECK(same_bits(reference, summed(group, 4, {.bucket_bytes = bucket_bytes}, {})));
    CHECK(same_bits(reference, summed(group, 4, {.bucket_bytes = bucket_bytes}, backward_order(), 3)));
    CHECK(same_bits(reference, summed(group, 4, {.bucket_bytes = bucket_bytes, .overlap = false}, backward_order())));
    // Every rank in another order, some parameters never marked.
    std::vector<std::size_t> order = backward_order();
    std::ranges::rotate(order, order.begin() + group.rank());
    order.resize(order.size() - static_cast<std::size_t>(group.rank()));
    CHECK(same_bits(reference, summed(group, 4, {.bucket_bytes = bucket_bytes}, order)));
  }
}

TEST_CASE("sums are there before finish() when backward goes on long enough") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  if (group.size() == 1) return;
  std::vector<float> g = gradients_of(group.rank(), 0);
  GradientBuckets buckets(group, Tensor(g.data(), Shape{kElements}), kOffsets, {.bucket_bytes = 4000});
  buckets.mark_ready(9002, kElements);
  buckets.mark_ready(1000, 9000);  // without the padding behind the last parameter
  // Marks of nothing only drive the transport.
  for (int i = 0; i < 2000; ++i) {
    buckets.mark_ready(0, 0);
    group.barrier();
  }
  buckets.finish();
  CHECK(buckets.overlapped() == 2);
}

TEST_CASE("double gradients, none at all, and misuse") {
  Groups groups = all_ranks();
  Communicator& group = groups.world();
  std::vector<double> g(100, 1.0 / 3.0);
  const std::vector<std::int64_t> offsets = {0, 50};
  GradientBuckets buckets(group, Tensor(g.data(), Shape{100}), offsets, {.bucket_bytes = 8});
  buckets.mark_ready(50, 100);
  buckets.finish();
  CHECK((std::abs(g[0] - group.size() / 3.0) <= 1e-15));
  CHECK((std::abs(g[99] - group.size() / 3.0) <= 1e-15));

  GradientBuckets nothing(group, Tensor(g.data(), Shape{0}), {});
  nothing.finish();

  CHECK_THROWS_AS(buckets.mark_ready(50, 101), Error);
  if (group.size() > 1) {
    GradientBuckets twice(group, Tensor(g.data(), Shape{100}), offsets, {.overlap = false});
    twice.mark_ready(0, 50);
    twice.mark_ready(50, 100);
    CHECK_THROWS_AS(twice.mark_ready(0, 50), Error);
  }
  std::int32_t integers[] = {1, 2};
  CHECK_THROWS_AS(GradientBuckets(group, Tensor(integers, Shape{2}), offsets), Error);
  const std::vector<std::int64_t> unordered = {0, 60, 50};
  CHECK_THROWS_AS(GradientBuckets(group, Tensor(g.data(), Shape{100}), unordered), Error);
}
