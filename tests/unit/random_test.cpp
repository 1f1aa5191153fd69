#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "dropcycle/core/random.hpp"

using namespace dropcycle;

TEST_CASE("Philox gives the published test vectors") {
  // Known answers of the generator's reference distribution (kat_vectors of Random123).
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("the normal quantile inverts the distribution function") {
  for (const double u : {1e-10, 1e-6, 0.001, 0.07, 0.3, 0.5, 0.77, 0.99, 1 - 1e-7}) {
    const double back = 0.5 * std::erfc(-normal_quantile(u) / std::sqrt(2.0));
    CHECK(std::abs(back - u) <= 1e-13 + 1e-12 * u);
  }
}

TEST_CASE("a window of a stream equals the stream") {
  const RandomStream stream(7, Purpose::test, "w");
  std::vector<float> whole(101), part(50);
  stream.fill_normal(Tensor(whole.data(), {101}), 0, 1.0, 2.0);
  stream.fill_normal(Tensor(part.data(), {50}), 33, 1.0, 2.0);
  for (std::size_t i = 0; i < part.size(); ++i) CHECK(part[i] == whole[i + 33]);
  CHECK(whole[5] == static_cast<float>(1.0 + 2.0 * stream.normal(5)));
}

TEST_CASE("draws in bulk are the single draws, bit by bit, tails and odd starts too") {
  const RandomStream stream(11, Purpose::test, "bulk");
  const std::uint64_t starts[] = {0, 1, 6, 1000003, (std::uint64_t{1} << 34) - 130};
  for (const std::uint64_t first : starts) {
    for (const std::int64_t count : {1, 7, 8, 255, 256, 257, 3001}) {
      std::vector<double> bulk(static_cast<std::size_t>(count));
      stream.fill_normal(Tensor(bulk.data(), {count}), first, 0.0, 1.0);
      int wrong = 0;
      for (std::size_t i = 0; i < bulk.size(); ++i) wrong += bulk[i] != stream.normal(first + i);
      CHECK(wrong == 0);
    }
  }
  // Far into both tails.
  std::vector<double> many(1 << 18);
  stream.fill_normal(Tensor(many.data(), {1 << 18}), 0, 0.0, 1.0);
  int wrong = 0;
  for (std::size_t i = 0; i < many.size(); ++i) wrong += many[i] != stream.normal(i);
  CHECK(wrong == 0);
  CHECK(*std::max_element(many.begin(), many.end()) > 4);
  CHECK(*std::min_element(many.begin(), many.end()) < -4);
}

TEST_CASE("known normal numbers of a stream stay what they are") {
  // A checkpoint's receipt is recomputed years later: these numbers are part of the format.
  const RandomStream stream(1, Purpose::drop, "layers.0.moe.experts.0.gate");
  const double expected[] = {0x1.4986fae38a74p-2, 0x1.90ab999c41ef8p-2, -0x1.18d57e7112838p-1, 0x1.99ea64ba6dd14p-3};
  for (std::uint64_t i = 0; i < 4; ++i) CHECK(stream.normal(i) == expected[i]);
}

TEST_CASE("moments of the normal draws") {
  const RandomStream stream(1, Purpose::weight, "w");
  double sum = 0, squares = 0;
  const int count = 200000;
  for (int i = 0; i < count; ++i) {
    const double x = stream.normal(static_cast<std::uint64_t>(i));
    sum += x;
    squares += x * x;
  }
  CHECK(std::abs(sum / count) <= 0.01);
  CHECK(std::abs(squares / count - 1) <= 0.02);
}

TEST_CASE("streams differ by seed, purpose, name and extra") {
  std::set<std::uint32_t> first;
  for (const auto& stream : {RandomStream(1, Purpose::weight, "a"), RandomStream(2, Purpose::weight, "a"),
                             RandomStream(1, Purpose::drop, "a"), RandomStream(1, Purpose::weight, "b"),
                             RandomStream(1, Purpose::weight, "a", 1)}) {
    first.insert(stream.bits(0));
  }
  CHECK(first.size() == 5);
}

TEST_CASE("permuted_index is a permutation that depends on the stream") {
  for (const std::uint64_t size : {1, 2, 3, 7, 64, 1000, 4097}) {
    const RandomStream stream(3, Purpose::shuffle, "s"), other(4, Purpose::shuffle, "s");
    std::set<std::uint64_t> seen;
    std::uint64_t equal = 0;
    for (std::uint64_t i = 0; i < size; ++i) {
      seen.insert(permuted_index(stream, size, i));
      equal += permuted_index(stream, size, i) == permuted_index(other, size, i);
    }
    CHECK(seen.size() == size);
    CHECK(*seen.rbegin() == size - 1);
    if (size >= 1000) CHECK(equal <= 20);
  }
}
