// Counter-based random numbers: every draw is a pure function of (seed, purpose, name, element index), so that the
// same weight gets the same value whatever the layout, the number of ranks or the backend.
// Generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "dropcycle/core/tensor.hpp"

namespace dropcycle {

// What a stream is for: streams of different purposes never overlap.
enum class Purpose : std::uint32_t {
  weight = 1,     // initial weights
  index_set = 2,  // S of Drop-Upcycling
  drop = 3,       // R of Drop-Upcycling (Eq. 4)
  noise = 4,      // noise upcycling
  shuffle = 5,    // order of the training samples
  blend = 6,      // which source a sample comes from
  jitter = 7,     // router input jitter
  generate = 8,   // sampling of tokens
  test = 9,
};

// Ten rounds of Philox4x32 on a 128-bit counter with a 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// The standard normal quantile of u in (0, 1) (Wichura, AS 241, 1988), in double with IEEE basic operations only
// (its logarithm too), so that every backend gets the same bits.
double normal_quantile(double u);

class RandomStream {
 public:
  // key = seed; the upper half of the counter = hash(purpose, name, extra).
  RandomStream(std::uint64_t seed, Purpose purpose, std::string_view name, std::uint64_t extra = 0);

  // 32 random bits: lane index % 4 of the block with counter index / 4.
  std::uint32_t bits(std::uint64_t index) const;
  // 64 random bits: half index % 2 of the block with counter index / 2. Do not mix with bits() on one stream.
  std::uint64_t bits64(std::uint64_t index) const;
  // Uniform in (0, 1): (bits(index) + 1/2) / 2^32.
  double uniform(std::uint64_t index) const { return (bits(index) + 0.5) * 0x1p-32; }
  // Standard normal: normal_quantile(uniform(index)).
  double normal(std::uint64_t index) const { return normal_quantile(uniform(index)); }

  // out[i] = mean + standard_deviation * normal(first + i), computed in double, rounded once to out's type.
  void fill_normal(Tensor out, std::uint64_t first, double mean, double standard_deviation) const;

  // Philox's key, and the upper half of its counter: for backends that draw by themselves.
  const std::array<std::uint32_t, 2>& key() const { return key_; }
  std::uint64_t stream() const { return stream_; }

 private:
  std::array<std::uint32_t, 4> block(std::uint64_t counter) const;
  std::array<std::uint32_t, 2> key_;
  std::uint64_t stream_;
};

// A stateless permutation of {0, ..., size-1} (a Feistel network on the stream's bits with cycle walking): the place
// of `index` without building the permutation. O(1) time and memory.
std::uint64_t permuted_index(const RandomStream& stream, std::uint64_t size, std::uint64_t index);

}  // namespace dropcycle
