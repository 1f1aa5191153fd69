// Normal draws in bulk: the same bits as RandomStream::normal() for each index, many at a time.
#include <algorithm>
#include <array>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dropcycle/core/random.hpp"
#include "normal.hpp"

namespace dropcycle {
namespace {

constexpr std::size_t kBlocks = 64;           // Philox blocks at a time
constexpr std::size_t kValues = 4 * kBlocks;  // numbers that they give
constexpr std::size_t kTailGroup = 16;        // tail values are finished in groups of this many

struct Generator {
  std::array<std::uint32_t, 2> key;
  std::uint64_t stream = 0;
};

// Philox on kBlocks counters from `counter` on, lane by lane (random.cpp has it for one): q[i] = u - 1/2 of number
// 4 * counter + i, exactly.
DROPCYCLE_INLINE void fill_uniform(const Generator& generator, std::uint64_t counter, double* q) {
  alignas(64) std::uint32_t c[4][kBlocks];
  for (std::size_t i = 0; i < kBlocks; ++i) {
    c[0][i] = static_cast<std::uint32_t>(counter + i);
    c[1][i] = static_cast<std::uint32_t>((counter + i) >> 32);
    c[2][i] = static_cast<std::uint32_t>(generator.stream);
    c[3][i] = static_cast<std::uint32_t>(generator.stream >> 32);
  }
  std::uint32_t key0 = generator.key[0], key1 = generator.key[1];
  for (int round = 0; round < 10; ++round) {
    for (std::size_t i = 0; i < kBlocks; ++i) {
      const std::uint64_t product0 = std::uint64_t{0xD2511F53} * c[0][i];
      const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * c[2][i];
      const std::uint32_t next0 = static_cast<std::uint32_t>(product1 >> 32) ^ c[1][i] ^ key0;
      const std::uint32_t next2 = static_cast<std::uint32_t>(product0 >> 32) ^ c[3][i] ^ key1;
      c[0][i] = next0;
      c[1][i] = static_cast<std::uint32_t>(product1);
      c[2][i] = next2;
      c[3][i] = static_cast<std::uint32_t>(product0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  for (std::size_t lane = 0; lane < 4; ++lane) {
    for (std::size_t i = 0; i < kBlocks; ++i) {
      q[4 * i + lane] = (static_cast<std::int32_t>(c[lane][i] ^ 0x80000000U) + 0.5) * 0x1p-32;
    }
  }
}

// The tails (15 % of all) of q are finished by themselves: p = 1/2 - |q| of each, side by side; how many there are.
struct PlainTails {
  DROPCYCLE_INLINE static std::size_t gather(const double* q, double* p) {
    std::size_t tails = 0;
    for (std::size_t i = 0; i < kValues; ++i) {
      const double magnitude = std::fabs(q[i]);
      p[tails] = 0.5 - magnitude;
      tails += magnitude > normal::kCentral;
    }
    return tails;
  }
  // And back: out of each is its value in p with the sign of q.
  DROPCYCLE_INLINE static void put_back(const double* q, const double* p, double* out) {
    for (std::size_t i = 0; i < kValues; ++i) {
      const bool tail = std::fabs(q[i]) > normal::kCentral;
      out[i] = tail ? std::copysign(*p, q[i]) : out[i];
      p += tail;
    }
  }
};

#if defined(__x86_64__)
#define DROPCYCLE_AVX512 "avx512f,avx512dq,avx512vl,prefer-vector-width=512"
// The same by AVX-512's compress and expand, eight at a time.
struct Avx512Tails {
  [[gnu::target(DROPCYCLE_AVX512)]] DROPCYCLE_INLINE static __mmask8 tails_of(__m512d magnitude) {
    return _mm512_cmp_pd_mask(magnitude, _mm512_set1_pd(normal::kCentral), _CMP_GT_OQ);
  }
  [[gnu::target(DROPCYCLE_AVX512)]] static std::size_t gather(const double* q, double* p) {
    std::size_t tails = 0;
    for (std::size_t i = 0; i < kValues; i += 8) {
      const __m512d magnitude = _mm512_abs_pd(_mm512_load_pd(q + i));
      const __mmask8 tail = tails_of(magnitude);
      _mm512_storeu_pd(p + tails, _mm512_maskz_compress_pd(tail, _mm512_sub_pd(_mm512_set1_pd(0.5), magnitude)));
      tails += static_cast<std::size_t>(__builtin_popcount(tail));
    }
    return tails;
  }
  [[gnu::target(DROPCYCLE_AVX512)]] static void put_back(const double* q, const double* p, double* out) {
    for (std::size_t i = 0; i < kValues; i += 8) {
      const __m512d values = _mm512_load_pd(q + i);
      const __mmask8 tail = tails_of(_mm512_abs_pd(values));
      const __m512d sign = _mm512_and_pd(values, _mm512_set1_pd(-0.0));
      const __m512d found = _mm512_maskz_expand_pd(tail, _mm512_loadu_pd(p));
      _mm512_mask_store_pd(out + i, tail, _mm512_or_pd(found, sign));
      p += __builtin_popcount(tail);
    }
  }
};
#endif

// out[i] = standard normal number 4 * counter + i, for i < kValues; out is aligned to 64 bytes.
template <class Tails>
DROPCYCLE_INLINE void fill_values(const Generator& generator, std::uint64_t counter, double* out) {
  alignas(64) double q[kValues];
  fill_uniform(generator, counter, q);
  for (std::size_t i = 0; i < kValues; ++i) out[i] = normal::central(q[i]);
  alignas(64) double p[kValues + kTailGroup];
  const std::size_t tails = Tails::gather(q, p);
  for (std::size_t i = 0; i < kTailGroup; ++i) p[tails + i] = 0.01;
  for (std::size_t first = 0; first < tails; first += kTailGroup) {
    double* group = p + first;
    for (std::size_t i = 0; i < kTailGroup; ++i) group[i] = normal::tail(group[i]);
  }
  Tails::put_back(q, p, out);
}

using Fill = void (*)(const Generator&, std::uint64_t, double*);

void fill_baseline(const Generator& generator, std::uint64_t counter, double* out) {
  fill_values<PlainTails>(generator, counter, out);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void fill_avx2(const Generator& generator, std::uint64_t counter, double* out) {
  fill_values<PlainTails>(generator, counter, out);
}
[[gnu::target(DROPCYCLE_AVX512)]] void fill_avx512(const Generator& generator, std::uint64_t counter, double* out) {
  fill_values<Avx512Tails>(generator, counter, out);
}
#endif

Fill choose_fill() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return fill_avx512;
  }
  if (__builtin_cpu_supports("avx2")) return fill_avx2;
#endif
  return fill_baseline;
}

}  // namespace

void RandomStream::fill_normal(Tensor out, std::uint64_t first, double mean, double standard_deviation) const {
  static const Fill fill_batch = choose_fill();
  const Generator generator{key_, stream_};
  const auto fill = [&](auto* values, auto round) {
    const auto count = static_cast<std::uint64_t>(out.elements());
    alignas(64) double batch[kValues];
    for (std::uint64_t i = 0; i < count;) {
      const std::uint64_t skip = (first + i) % 4;
      const std::uint64_t part = std::min<std::uint64_t>(kValues - skip, count - i);
      if (part < 8) {
        values[i] = round(mean + standard_deviation * normal(first + i));
        ++i;
        continue;
      }
      fill_batch(generator, (first + i) / 4, batch);
      for (std::uint64_t k = 0; k < part; ++k) values[i + k] = round(mean + standard_deviation * batch[skip + k]);
      i += part;
    }
  };
  switch (out.dtype) {
    case DType::f64:
      return fill(out.as<double>(), [](double x) { return x; });
    case DType::f32:
      return fill(out.as<float>(), [](double x) { return static_cast<float>(x); });
    case DType::bf16:
      return fill(out.as<BF16>(), [](double x) { return BF16(static_cast<float>(x)); });
    case DType::f16:
      return fill(out.as<F16>(), [](double x) { return F16(static_cast<float>(x)); });
    case DType::i32:
    case DType::i16:
      fail(Status::internal, "normal numbers can't be drawn into integers");
  }
}

}  // namespace dropcycle
