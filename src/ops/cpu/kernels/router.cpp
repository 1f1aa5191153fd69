// The router: logits, choice of experts and their adjoints. The products are tiny beside the experts' (E columns) and
// float, since rounding would change choices; their tiles stay in registers. Limit: multiplications in
// float, 90 to 100 GFLOP/s on two cores of Zen 4; rows to come are fetched meanwhile.
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

// A tile of experts; a tile of logits has kLanes sums, which are added up together.
constexpr std::int64_t kTileExperts = 4, kTileTokens = kLanes / kTileExperts;
constexpr std::int64_t kTileVectors = 4, kTileColumns = kTileVectors * kLanes;
constexpr std::int64_t kRouterRowsAhead = 16;

// The first `count` elements, zeros behind them.
template <class T>
Vector load_some(const T* from, std::int64_t count) {
  if (count >= kLanes) return load_vector(from);
  float copy[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) copy[i] = load(from[i]);
  return load_vector(copy);
}
inline void store_some(float* to, Vector value, std::int64_t count) {
  if (count >= kLanes) return store_vector(to, value);
  for (std::int64_t i = 0; i < count; ++i) to[i] = value[i];
}

// Logits of the tokens from t and the experts from e on; beyond the last ones these are computed again.
template <class T>
void logits_tile(const T* x, const float* w, float* logits, std::int64_t t, std::int64_t e, std::int64_t rows,
                 std::int64_t width, std::int64_t experts) {
  Vector sums[kLanes] = {};
  for (std::int64_t h = 0; h < width; h += kLanes) {
    Vector weights[kTileExperts];
#pragma GCC unroll 4
    for (std::int64_t j = 0; j < kTileExperts; ++j) {
      weights[j] = load_some(w + smaller(e + j, experts - 1) * width + h, width - h);
    }
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < kTileTokens; ++i) {
      const Vector values = load_some(x + smaller(t + i, rows - 1) * width + h, width - h);
#pragma GCC unroll 4
      for (std::int64_t j = 0; j < kTileExperts; ++j) sums[i * kTileExperts + j] += values * weights[j];
    }
  }
  IntVector square[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) square[i] = reinterpret_cast<IntVector>(sums[i]);
  transpose(square);
  Vector total{};
  for (std::int64_t i = 0; i < kLanes; ++i) total += reinterpret_cast<Vector>(square[i]);
  for (std::int64_t i = 0; i < smaller(kTileTokens, rows - t); ++i) {
    for (std::int64_t j = 0; j < smaller(kTileExperts, experts - e); ++j) {
      logits[(t + i) * experts + e + j] = total[i * kTileExperts + j];
    }
  }
}

// sums[i] += Σ_r coefficient(r, i) x[r, columns from first on] over `rows` rows, in their order.
template <std::int64_t kCount, class T, class Coefficient>
void add_rows(const T* x, std::int64_t rows, std::int64_t first, std::int64_t width,
              Vector (&sums)[kCount][kTileVectors], Coefficient coefficient) {
  for (std::int64_t r = 0; r < rows; ++r) {
    fetch_row(x + (r + kRouterRowsAhead) * width + first, kTileColumns);
    Vector values[kTileVectors];
#pragma GCC unroll 4
    for (std::int64_t v = 0; v < kTileVectors; ++v) {
      const std::int64_t at = first + v * kLanes;
      values[v] = at < width ? load_some(x + r * width + at, width - at) : Vector{};
    }
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < kCount; ++i) {
      const float factor = coefficient(r, i);
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < kTileVectors; ++v) sums[i][v] += factor * values[v];
    }
  }
}

// dx[t, columns] += dlogits[t] w for kTileTokens tokens from t on.
void dx_tile(const float* dlogits, const float* w, float* dx, std::int64_t t, std::int64_t first, std::int64_t rows,
             std::int64_t width, std::int64_t experts) {
  const std::int64_t tokens = smaller(kTileTokens, rows - t);
  Vector sums[kTileTokens][kTileVectors];
  for (std::int64_t i = 0; i < kTileTokens; ++i) {
    for (std::int64_t v = 0; v < kTileVectors; ++v) {
      const std::int64_t at = first + v * kLanes;
      sums[i][v] = i < tokens && at < width ? load_some(dx + (t + i) * width + at, width - at) : Vector{};
    }
  }
  add_rows(w, experts, first, width, sums,
           [&](std::int64_t e, std::int64_t i) { return dlogits[smaller(t + i, rows - 1) * experts + e]; });
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t v = 0; v < kTileVectors && first + v * kLanes < width; ++v) {
      const std::int64_t at = first + v * kLanes;
      store_some(dx + (t + i) * width + at, sums[i][v], width - at);
    }
  }
}

// dw[experts, columns] += dlogitsᵀ x for kTileExperts experts from e on: every sum over t is one thread's, in order.
template <class T>
void dw_tile(const float* dlogits, const T* x, float* dw, std::int64_t e, std::int64_t first, std::int64_t rows,
             std::int64_t width, std::int64_t experts) {
  Vector sums[kTileExperts][kTileVectors] = {};
  add_rows(x, rows, first, width, sums,
           [&](std::int64_t t, std::int64_t j) { return dlogits[t * experts + smaller(e + j, experts - 1)]; });
  for (std::int64_t j = 0; j < smaller(kTileExperts, experts - e); ++j) {
    for (std::int64_t v = 0; v < kTileVectors && first + v * kLanes < width; ++v) {
      const std::int64_t at = first + v * kLanes;
      float* to = dw + (e + j) * width + at;
      store_some(to, load_some(to, width - at) + sums[j][v], width - at);
    }
  }
}

template <class T>
void logits_backward(const float* dlogits, const T* x, const float* w, float* dx, float* dw, std::int64_t rows,
                     std::int64_t width, std::int64_t experts) {
  const std::int64_t columns = ceil_div(width, kTileColumns), groups = ceil_div(experts, kTileExperts);
#pragma omp parallel if (rows * width > kParallelElements)
  {
#pragma omp for schedule(static) nowait
    for (std::int64_t t = 0; t < rows; t += kTileTokens) {
      fetch_row(dx + (t + kTileTokens) * width, kTileTokens * width);
      for (std::int64_t c = 0; c < columns; ++c) dx_tile(dlogits, w, dx, t, c * kTileColumns, rows, width, experts);
    }
#pragma omp for schedule(static)
    for (std::int64_t task = 0; task < columns * groups; ++task) {
      dw_tile(dlogits, x, dw, task % groups * kTileExperts, task / groups * kTileColumns, rows, width, experts);
    }
  }
}

// Probabilities of one row; returns its log-sum-exp.
float softmax(const float* logits, float* probabilities, std::int64_t n) {
  float largest = logits[0];
  for (std::int64_t e = 1; e < n; ++e) largest = logits[e] > largest ? logits[e] : largest;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < n; ++e) {
    probabilities[e] = exp_fast(logits[e] - largest);
    sum += probabilities[e];
  }
  const float inverse = 1.0F / sum;
  for (std::int64_t e = 0; e < n; ++e) probabilities[e] *= inverse;
  return largest + __builtin_logf(sum);
}

// The k-th largest follows the one before it in the order (value descending, index ascending). Where NaN leaves no
// candidate, index k is taken: the caller finds NaN in the loss.
void choose(const float* logits, std::int32_t* chosen, std::int64_t n, std::int64_t top_k) {
  for (std::int64_t k = 0; k < top_k; ++k) {
    std::int64_t best = -1;
    const std::int64_t before = k == 0 ? -1 : chosen[k - 1];
    for (std::int64_t e = 0; e < n; ++e) {
      const bool open = before < 0 || logits[e] < logits[before] || (logits[e] == logits[before] && e > before);
      if (open && (best < 0 || logits[e] > logits[best])) best = e;
    }
    chosen[k] = static_cast<std::int32_t>(best < 0 ? k : best);
  }
}

}  // namespace

void router_logits(Type type, const void* x, const float* w, float* logits, std::int64_t rows, std::int64_t width,
                   std::int64_t experts) {
  with_type(type, [&]<class T>(T) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
    for (std::int64_t t = 0; t < rows; t += kTileTokens) {
      fetch_row(static_cast<const T*>(x) + (t + kTileTokens) * width, kTileTokens * width);
      for (std::int64_t e = 0; e < experts; e += kTileExperts) {
        logits_tile(static_cast<const T*>(x), w, logits, t, e, rows, width, experts);
      }
    }
  });
}

void router_logits_backward(Type type, const float* dlogits, const void* x, const float* w, float* dx, float* dw,
                            std::int64_t rows, std::int64_t width, std::int64_t experts) {
  with_type(type,
            [&]<class T>(T) { logits_backward(dlogits, static_cast<const T*>(x), w, dx, dw, rows, width, experts); });
}

void route(bool softmax_first, const float* logits, std::int32_t* experts, float* weights, float* probabilities,
           float* lse, std::int64_t rows, std::int64_t n_experts, std::int64_t top_k) {
#pragma omp parallel for schedule(static) if (rows * n_experts > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* row = logits + t * n_experts;
    std::int32_t* chosen = experts + t * top_k;
    float* out = weights + t * top_k;
    float* p = probabilities + t * n_experts;
    lse[t] = softmax(row, p, n_experts);
    choose(row, chosen, n_experts, top_k);
    for (std::int64_t k = 0; k < top_k; ++k) out[k] = softmax_first ? p[chosen[k]] : row[chosen[k]];
    if (!softmax_first) softmax(out, out, top_k);
  }
}

// Through Eq. 3 (weights w over the chosen): dlogit_k = w_k (dw_k - Σ_j w_j dw_j); through softmax over all:
// dlogit_e = p_e ([e chosen] dw_e - Σ_j p_j dw_j). Balancing and z-loss: see ops.hpp.
void route_backward(bool softmax_first, const std::int32_t* experts, const float* weights, const float* probabilities,
                    const float* lse, const float* dweights, const float* dprobabilities, float z, float* dlogits,
                    std::int64_t rows, std::int64_t n_experts, std::int64_t top_k) {
#pragma omp parallel for schedule(static) if (rows * n_experts > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* p = probabilities + t * n_experts;
    const std::int32_t* chosen = experts + t * top_k;
    float* out = dlogits + t * n_experts;
    float balance = 0;
    if (dprobabilities != nullptr) {
      for (std::int64_t e = 0; e < n_experts; ++e) balance += p[e] * dprobabilities[e];
    }
    float through = 0;
    for (std::int64_t k = 0; k < top_k; ++k) through += weights[t * top_k + k] * dweights[t * top_k + k];
    const float rest = 2.0F * z * lse[t] - (softmax_first ? through : 0.0F);
    for (std::int64_t e = 0; e < n_experts; ++e) {
      out[e] = p[e] * ((dprobabilities != nullptr ? dprobabilities[e] - balance : 0.0F) + rest);
    }
    for (std::int64_t k = 0; k < top_k; ++k) {
      const float d = dweights[t * top_k + k];
      out[chosen[k]] += weights[t * top_k + k] * (softmax_first ? d : d - through);
    }
  }
}

void sum_rows(const float* x, float* out, std::int64_t rows, std::int64_t width) {
  constexpr std::int64_t kColumns = 64;
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements && width > kColumns)
  for (std::int64_t first = 0; first < width; first += kColumns) {
    const std::int64_t end = first + kColumns < width ? first + kColumns : width;
    for (std::int64_t t = 0; t < rows; ++t) {
#pragma omp simd
      for (std::int64_t e = first; e < end; ++e) out[e] += x[t * width + e];
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
