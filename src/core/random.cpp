#include "dropcycle/core/random.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "dropcycle/core/digest.hpp"

namespace dropcycle {
namespace {

// log(x) for normal x > 0 with + - * / only: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1)).
double portable_log(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<int>((bits >> 52) & 0x7ff) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double s2 = s * s;
  double series = 0.0;
  for (int power = 23; power >= 1; power -= 2) series = series * s2 + 1.0 / power;
  return exponent * 0.6931471805599453 + 2.0 * s * series;
}

template <std::size_t N>
double polynomial(const double (&coefficients)[N], double x) {
  double value = coefficients[N - 1];
  for (std::size_t i = N - 1; i-- > 0;) value = value * x + coefficients[i];
  return value;
}

}  // namespace

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
  // Coefficients of Wichura's PPND16 (Applied Statistics 37, 1988).
  static constexpr double a[] = {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                                 1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                                 3.3430575583588128105e4, 2.5090809287301226727e3};
  static constexpr double b[] = {1.0,
                                 4.2313330701600911252e1,
                                 6.8718700749205790830e2,
                                 5.3941960214247511077e3,
                                 2.1213794301586595867e4,
                                 3.9307895800092710610e4,
                                 2.8729085735721942674e4,
                                 5.2264952788528545610e3};
  static constexpr double c[] = {1.42343711074968357734e0,  4.63033784615654529590e0, 5.76949722146069140550e0,
                                 3.64784832476320460504e0,  1.27045825245236838258e0, 2.41780725177450611770e-1,
                                 2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static constexpr double d[] = {1.0,
                                 2.05319162663775882187e0,
                                 1.67638483018380384940e0,
                                 6.89767334985100004550e-1,
                                 1.48103976427480074590e-1,
                                 1.51986665636164571966e-2,
                                 5.47593808499534494600e-4,
                                 1.05075007164441684324e-9};
  static constexpr double e[] = {6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,
                                 2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                 2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static constexpr double f[] = {1.0,
                                 5.99832206555887937690e-1,
                                 1.36929880922735805310e-1,
                                 1.48753612908506148525e-2,
                                 7.86869131145613259100e-4,
                                 1.84631831751005468180e-5,
                                 1.42151175831644588870e-7,
                                 2.04426310338993978564e-15};
  const double q = u - 0.5;
  if (std::fabs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(a, r) / polynomial(b, r);
  }
  double r = std::sqrt(-portable_log(q < 0 ? u : 1.0 - u));
  double value = 0;
  if (r <= 5.0) {
    r -= 1.6;
    value = polynomial(c, r) / polynomial(d, r);
  } else {
    r -= 5.0;
    value = polynomial(e, r) / polynomial(f, r);
  }
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

void RandomStream::fill_normal(Tensor out, std::uint64_t first, double mean, double standard_deviation) const {
  const auto fill = [&](auto* values, auto round) {
    const auto count = static_cast<std::uint64_t>(out.elements());
    for (std::uint64_t i = 0; i < count;) {
      const auto words = block((first + i) / 4);
      for (std::uint64_t lane = (first + i) % 4; lane < 4 && i < count; ++lane, ++i) {
        values[i] = round(mean + standard_deviation * normal_quantile((words[lane] + 0.5) * 0x1p-32));
      }
    }
  };
  switch (out.dtype) {
    case DType::f64:
      return fill(out.as<double>(), [](double x) { return x; });
    case DType::f32:
      return fill(out.as<float>(), [](double x) { return static_cast<float>(x); });
    case DType::bf16:
      return fill(out.as<BF16>(), [](double x) { return BF16(static_cast<float>(x)); });
    case DType::i32:
      fail(Status::internal, "normal numbers can't be drawn into integers");
  }
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
