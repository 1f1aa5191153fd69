// The router: logits, choice of experts and their adjoints. Tiny beside the experts' products (E columns).
#include "common.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

template <class T>
float dot(const T* x, const float* w, std::int64_t width) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t h = 0; h < width; ++h) sum += load(x[h]) * w[h];
  return sum;
}

template <class T>
void logits_backward(const float* dlogits, const T* x, const float* w, float* dx, float* dw, std::int64_t rows,
                     std::int64_t width, std::int64_t experts) {
  constexpr std::int64_t kColumns = 64;
#pragma omp parallel if (rows * width > kParallelElements)
  {
#pragma omp for schedule(static) nowait
    for (std::int64_t t = 0; t < rows; ++t) {
      float* out = dx + t * width;
      for (std::int64_t first = 0; first < width; first += kColumns) {
        const std::int64_t columns = width - first < kColumns ? width - first : kColumns;
        float sums[kColumns];
        for (std::int64_t h = 0; h < columns; ++h) sums[h] = out[first + h];
        for (std::int64_t e = 0; e < experts; ++e) {
          const float d = dlogits[t * experts + e];
          const float* row = w + e * width + first;
#pragma omp simd
          for (std::int64_t h = 0; h < columns; ++h) sums[h] += d * row[h];
        }
        for (std::int64_t h = 0; h < columns; ++h) out[first + h] = sums[h];
      }
    }
    // Columns are shared out, so that every sum over t is one thread's, in order.
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < width; first += kColumns) {
      const std::int64_t columns = width - first < kColumns ? width - first : kColumns;
      for (std::int64_t t = 0; t < rows; ++t) {
        const T* row = x + t * width + first;
        for (std::int64_t e = 0; e < experts; ++e) {
          const float d = dlogits[t * experts + e];
          float* sums = dw + e * width + first;
#pragma omp simd
          for (std::int64_t h = 0; h < columns; ++h) sums[h] += d * load(row[h]);
        }
      }
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
    for (std::int64_t t = 0; t < rows; ++t) {
      const T* row = static_cast<const T*>(x) + t * width;
      for (std::int64_t e = 0; e < experts; ++e) logits[t * experts + e] = dot(row, w + e * width, width);
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
