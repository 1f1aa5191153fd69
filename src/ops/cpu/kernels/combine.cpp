// Weighted sums of the experts' rows, y[t] = Σ_k weights[t,k] z[slots[t,k]], and their adjoint. Limit: memory
// bandwidth, of which Zen 4 reaches 1.0 to 1.3 (of a plain copy's): rows to come, which lie anywhere, are fetched
// meanwhile.
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

constexpr std::int64_t kTokensAhead = 4;

template <bool kStream, class T, class Y>
void forward(const T* z, const std::int32_t* slots, const float* weights, Y* y, std::int64_t rows, std::int64_t top_k,
             std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const auto row_of = [&](std::int64_t k) { return z + slots[t * top_k + k] * width; };
    const auto weight_of = [&](std::int64_t k) { return weights == nullptr ? 1.0F : weights[t * top_k + k]; };
    for (std::int64_t k = 0; k < top_k && t + kTokensAhead < rows; ++k) {
      fetch_row(z + slots[(t + kTokensAhead) * top_k + k] * width, width);
    }
    Y* out = y + t * width;
    std::int64_t h = 0;
    for (; h + kTwo <= width; h += kTwo) {
      Two sum{};
      for (std::int64_t k = 0; k < top_k; ++k) {
        const T* row = row_of(k) + h;
        const float weight = weight_of(k);
        sum.first += weight * load_vector(row);
        sum.second += weight * load_vector(row + kLanes);
      }
      store_ordered<kStream>(out + h, sum);
    }
    for (; h < width; ++h) {
      float sum = 0;
      for (std::int64_t k = 0; k < top_k; ++k) sum += weight_of(k) * load(row_of(k)[h]);
      store(out[h], sum);
    }
  }
}

// out = weight d; Σ d row, if there is a row.
template <bool kStream, bool kDot, class T>
float backward_row(const float* d, const T* row, float weight, T* out, std::int64_t width) {
  Two sums{};
  std::int64_t h = 0;
  for (; h + kTwo <= width; h += kTwo) {
    const Two values = load_two(d + h);
    if constexpr (kDot) {
      sums.first += values.first * load_vector(row + h);
      sums.second += values.second * load_vector(row + h + kLanes);
    }
    store_ordered<kStream>(out + h, {weight * values.first, weight * values.second});
  }
  float dot = kDot ? sum_of(sums.first + sums.second) : 0;
  for (; h < width; ++h) {
    if constexpr (kDot) dot += d[h] * load(row[h]);
    store(out[h], weight * d[h]);
  }
  return dot;
}

template <bool kStream, class T>
void backward(const float* dy, const T* z, const std::int32_t* slots, const float* weights, T* dz, float* dweights,
              std::int64_t rows, std::int64_t top_k, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* d = dy + t * width;
    fetch_row(d + kTokensAhead * width, width);
    for (std::int64_t k = 0; k < top_k; ++k) {
      const std::int64_t choice = t * top_k + k, at = slots[choice] * width;
      const float weight = weights == nullptr ? 1.0F : weights[choice];
      if (dweights == nullptr) {
        backward_row<kStream, false>(d, z, weight, dz + at, width);
        continue;
      }
      if (t + kTokensAhead < rows) fetch_row(z + slots[choice + kTokensAhead * top_k] * width, width);
      dweights[choice] = backward_row<kStream, true>(d, z + at, weight, dz + at, width);
    }
  }
}

}  // namespace

void combine(Type type, const void* z, const std::int32_t* slots, const float* weights, Type y_type, void* y,
             std::int64_t rows, std::int64_t top_k, std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    with_type(y_type, [&]<class Y>(Y) {
      const bool stream = past_caches(y, rows, width * static_cast<std::int64_t>(sizeof(Y)));
      (stream ? forward<true, T, Y> : forward<false, T, Y>)(static_cast<const T*>(z), slots, weights,
                                                            static_cast<Y*>(y), rows, top_k, width);
    });
  });
}

void combine_backward(Type type, const float* dy, const void* z, const std::int32_t* slots, const float* weights,
                      void* dz, float* dweights, std::int64_t rows, std::int64_t top_k, std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    const bool stream = past_caches(dz, rows * top_k, width * static_cast<std::int64_t>(sizeof(T)));
    (stream ? backward<true, T> : backward<false, T>)(dy, static_cast<const T*>(z), slots, weights, static_cast<T*>(dz),
                                                      dweights, rows, top_k, width);
  });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
