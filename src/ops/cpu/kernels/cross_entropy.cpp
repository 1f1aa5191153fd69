// Cross-entropy of a block of rows and its gradient. A row passes twice: maximum and sum of the exponentials, piece by
// piece; then the gradient. Rows of up to some 100,000 logits stay in the second-level cache between the passes. Limit:
// memory bandwidth of one reading and one writing.
#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

struct Softmax {
  float largest, sum;  // of exp(x - largest)
};

// A piece's maximum is found while it comes into the first-level cache, its exponentials from there.
constexpr std::int64_t kPieceOfRow = 2048;

Softmax softmax_of(const float* x, std::int64_t n) {
  float largest = x[0];
  Vector sums{};
  for (std::int64_t first = 0; first < n; first += kPieceOfRow) {
    const std::int64_t count = n - first < kPieceOfRow ? n - first : kPieceOfRow, whole = count / kTwo * kTwo;
    const float* piece = x + first;
    Vector best = Vector{} + largest;
    for (std::int64_t v = 0; v < whole; v += kTwo) {
      const Two values = WholeTwo{}.load(piece + v, kPieceOfRow);
      best = larger(larger(values.first, values.second), best);
    }
    float top = largest_of(best);
    for (std::int64_t v = whole; v < count; ++v) top = piece[v] > top ? piece[v] : top;
    sums *= exp_fast(largest - top);
    largest = top;
    for (std::int64_t v = 0; v < whole; v += kTwo) {
      const Two values = load_two(piece + v);
      sums += exp_vector(values.first - largest) + exp_vector(values.second - largest);
    }
    for (std::int64_t v = whole; v < count; ++v) sums[0] += exp_fast(piece[v] - largest);
  }
  return {largest, sum_of(sums)};
}

// out[v] = factor exp(row[v] - largest), minus `scale` at column `target`, if it is one.
template <class T>
void gradient_of(const float* row, float largest, float factor, float scale, std::int64_t target, T* out,
                 std::int64_t width) {
  const std::int64_t whole = width / kLanes * kLanes;
  for (std::int64_t v = 0; v < whole; v += kLanes) {
    store_vector(out + v, factor * exp_for(T{}, load_vector(row + v) - largest));
  }
  for (std::int64_t v = whole; v < width; ++v) store(out[v], factor * exp_fast(row[v] - largest));
  if (target >= 0 && target < width) store(out[target], factor * exp_fast(row[target] - largest) - scale);
}

template <class T>
void rows_of(const float* logits, const std::int32_t* targets, float scale, float* losses, T* dlogits,
             std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* row = logits + t * width;
    const std::int32_t target = targets[t];
    T* out = dlogits == nullptr ? nullptr : dlogits + t * width;
    if (target < 0) {
      losses[t] = 0;
      for (std::int64_t v = 0; out != nullptr && v < width; ++v) store(out[v], 0.0F);
      continue;
    }
    const auto [largest, sum] = softmax_of(row, width);
    losses[t] = largest + __builtin_logf(sum) - row[target];
    if (out == nullptr) continue;
    gradient_of(row, largest, scale / sum, scale, target, out, width);
  }
}

// The ranks' parts of row t as one softmax, and the target's logit.
struct Whole {
  float largest, sum, target;
};

Whole whole_of(const float* parts, std::int64_t ranks, std::int64_t t, std::int64_t rows) {
  Whole whole{parts[3 * t], 0, 0};
  for (std::int64_t r = 1; r < ranks; ++r) {
    const float largest = parts[3 * (r * rows + t)];
    whole.largest = largest > whole.largest ? largest : whole.largest;
  }
  for (std::int64_t r = 0; r < ranks; ++r) {
    const float* part = parts + 3 * (r * rows + t);
    whole.sum += part[1] * exp_fast(part[0] - whole.largest);
    whole.target += part[2];
  }
  return whole;
}

template <class T>
void rows_of_parts(const float* parts, std::int64_t ranks, const float* logits, const std::int32_t* targets,
                   std::int64_t first, float scale, float* losses, T* dlogits, std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    T* out = dlogits == nullptr ? nullptr : dlogits + t * width;
    if (targets[t] < 0) {
      losses[t] = 0;
      for (std::int64_t v = 0; out != nullptr && v < width; ++v) store(out[v], 0.0F);
      continue;
    }
    const Whole whole = whole_of(parts, ranks, t, rows);
    losses[t] = whole.largest + __builtin_logf(whole.sum) - whole.target;
    if (out == nullptr) continue;
    gradient_of(logits + t * width, whole.largest, scale / whole.sum, scale, targets[t] - first, out, width);
  }
}

}  // namespace

void cross_entropy_part(const float* logits, const std::int32_t* targets, std::int64_t first, float* part,
                        std::int64_t rows, std::int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kParallelElements)
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* row = logits + t * width;
    const auto [largest, sum] = softmax_of(row, width);
    const std::int64_t column = targets[t] - first;
    const bool here = targets[t] >= 0 && column >= 0 && column < width;
    part[3 * t] = largest;
    part[3 * t + 1] = sum;
    part[3 * t + 2] = here ? row[column] : 0;
  }
}

void cross_entropy_of_parts(const float* parts, std::int64_t ranks, const float* logits, const std::int32_t* targets,
                            std::int64_t first, float scale, float* losses, Type type, void* dlogits, std::int64_t rows,
                            std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    rows_of_parts(parts, ranks, logits, targets, first, scale, losses, static_cast<T*>(dlogits), rows, width);
  });
}

void cross_entropy(const float* logits, const std::int32_t* targets, float scale, float* losses, Type type,
                   void* dlogits, std::int64_t rows, std::int64_t width) {
  with_type(type, [&]<class T>(T) { rows_of(logits, targets, scale, losses, static_cast<T*>(dlogits), rows, width); });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
