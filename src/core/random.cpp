#include "dropcycle/core/random.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "dropcycle/core/digest.hpp"
#include "normal.hpp"

namespace dropcycle {
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

double normal_quantile(double u) {
  const double q = u - 0.5;
  if (std::fabs(q) <= normal::kCentral) return normal::central(q);
  const double p = q < 0 ? u : 1.0 - u;
  const double r = std::sqrt(-normal::portable_log(p));
  const double value = r <= 5.0 ? normal::tail(p) : normal::far_tail(r);
  return q < 0 ? -value : value;
}

RandomStream::RandomStream(std::uint64_t seed, Purpose purpose, std::string_view name, std::uint64_t extra)
    : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)} {
  const std::uint64_t words[3] = {static_cast<std::uint64_t>(purpose), hash64(name), extra};
  stream_ = hash64({reinterpret_cast<const char*>(words), sizeof words});
}

std::array<std::uint32_t, 4> RandomStream::block(std::uint64_t counter) const {
  return philox4x32({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                     static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                    key_);
}

std::uint32_t RandomStream::bits(std::uint64_t index) const { return block(index / 4)[index % 4]; }

std::uint64_t RandomStream::bits64(std::uint64_t index) const {
  const auto words = block(index / 2);
  const std::size_t half = index % 2 * 2;
  return words[half] | static_cast<std::uint64_t>(words[half + 1]) << 32;
}

std::uint64_t permuted_index(const RandomStream& stream, std::uint64_t size, std::uint64_t index) {
  require(index < size, "place {} of a permutation of {}", index, size);
  const int half_bits = std::max(1, (static_cast<int>(std::bit_width(size - 1)) + 1) / 2);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  do {  // a permutation of 2^(2 half_bits) values, walked until it falls into the range
    std::uint64_t left = index >> half_bits;
    std::uint64_t right = index & mask;
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::uint64_t next = left ^ (stream.bits64((round << 40) | right) & mask);
      left = right;
      right = next;
    }
    index = left << half_bits | right;
  } while (index >= size);
  return index;
}

}  // namespace dropcycle
