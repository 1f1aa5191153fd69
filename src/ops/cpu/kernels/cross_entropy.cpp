// Cross-entropy of a block of rows and its gradient. A row's logits are read once from memory: its maximum, then its
// exponentials and their sum, piece by piece; the gradient scales the exponentials, which are kept in the second-level
// cache. Limit: memory bandwidth of one reading and one writing; Zen 4 reaches 0.8 of it.
#include <omp.h>

#include "vectors.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {
namespace {

struct Softmax {
  float largest, sum;  // of exp(x - largest)
};

// What a row leaves for its gradient: exp(x[v] - largest[v / kPieceOfRow]), the largest of the row up to that piece.
struct Exponentials {
  float *values, *largest;
};

template <bool kKeep>
Softmax softmax_of(const float* x, std::int64_t n, const Exponentials& kept) {
  float largest = x[0];
  Vector sums{};
  for (std::int64_t first = 0; first < n; first += kPieceOfRow) {
    const std::int64_t count = n - first < kPieceOfRow ? n - first : kPieceOfRow, whole = count / kTwo * kTwo;
    const float* piece = x + first;
    Vector best = Vector{} + largest;
    for (std::int64_t v = 0; v < whole; v += kTwo) {
      const Two values = load_two(piece + v);
      best = larger(larger(values.first, values.second), best);
    }
    float top = largest_of(best);
    for (std::int64_t v = whole; v < count; ++v) top = piece[v] > top ? piece[v] : top;
    sums *= exp_fast(largest - top);
    largest = top;
    if constexpr (kKeep) kept.largest[first / kPieceOfRow] = top;
    for (std::int64_t v = 0; v < whole; v += kTwo) {
      if constexpr (kKeep) __builtin_prefetch(x + (n + first + v) / 2 + kPieceOfRow, 0, 2);
      const Two values = kKeep ? load_two(piece + v) : WholeTwo{}.load(piece + v, kPieceOfRow);
      const Two powers{exp_vector(values.first - top), exp_vector(values.second - top)};
      sums += powers.first + powers.second;
      if constexpr (kKeep) store_two(kept.values + first + v, powers);
    }
    for (std::int64_t v = whole; v < count; ++v) {
      const float power = exp_fast(piece[v] - top);
      sums[0] += power;
      if constexpr (kKeep) kept.values[first + v] = power;
    }
  }
  return {largest, sum_of(sums)};
}

// out[v] = scale softmax[v]. The first half of the next row is fetched meanwhile, and its second half while its
// exponentials are made: memory never rests.
template <bool kStream, class T>
void gradient_of_kept(const Exponentials& kept, const Softmax& softmax, float scale, const float* next, T* out,
                      std::int64_t width) {
  for (std::int64_t first = 0; first < width; first += kPieceOfRow) {
    const std::int64_t end = first + kPieceOfRow < width ? first + kPieceOfRow : width;
    const float factor = scale / softmax.sum * exp_fast(kept.largest[first / kPieceOfRow] - softmax.largest);
    std::int64_t v = first;
    for (; v + kTwo <= end; v += kTwo) {
      __builtin_prefetch(next + v / 2 + kPieceOfRow, 0, 2);
      const Two powers = load_two(kept.values + v);
      store_ordered<kStream>(out + v, {factor * powers.first, factor * powers.second});
    }
    for (; v < end; ++v) store(out[v], factor * kept.values[v]);
  }
}

// out[v] = factor exp(row[v] - largest), minus `scale` at column `target`, if it is one.
template <class T>
void gradient_of(const float* row, float largest, float factor, float scale, std::int64_t target, T* out,
                 std::int64_t width) {
  const std::int64_t whole = width / kLanes * kLanes;
  for (std::int64_t v = 0; v < whole; v += kLanes) {
    store_vector(out + v, factor * exp_vector(load_vector(row + v) - largest));
  }
  for (std::int64_t v = whole; v < width; ++v) store(out[v], factor * exp_fast(row[v] - largest));
  if (target >= 0 && target < width) store(out[target], factor * exp_fast(row[target] - largest) - scale);
}

template <class T>
void rows_of(const float* logits, const std::int32_t* targets, float scale, float* losses, T* dlogits, float* scratch,
             std::int64_t rows, std::int64_t width) {
  const bool stream = past_caches(dlogits, rows, width * static_cast<std::int64_t>(sizeof(T)));
#pragma omp parallel if (rows * width > kParallelElements)
  {
    float* own = scratch + omp_get_thread_num() * cross_entropy_scratch(width);
    const Exponentials kept{own, own + width};
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < rows; ++t) {
      const float* row = logits + t * width;
      const std::int32_t target = targets[t];
      T* out = dlogits == nullptr ? nullptr : dlogits + t * width;
      if (target < 0) {
        losses[t] = 0;
        for (std::int64_t v = 0; out != nullptr && v < width; ++v) store(out[v], 0.0F);
        continue;
      }
      const Softmax softmax = out == nullptr ? softmax_of<false>(row, width, kept) : softmax_of<true>(row, width, kept);
      const float shifted = row[target] - softmax.largest;
      losses[t] = __builtin_logf(softmax.sum) - shifted;
      if (out == nullptr) continue;
      (stream ? gradient_of_kept<true, T> : gradient_of_kept<false, T>)(kept, softmax, scale, row + width, out, width);
      store(out[target], scale * (exp_fast(shifted) / softmax.sum - 1.0F));
    }
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
    const auto [largest, sum] = softmax_of<false>(row, width, {});
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
                   void* dlogits, float* scratch, std::int64_t rows, std::int64_t width) {
  with_type(type, [&]<class T>(T) {
    rows_of(logits, targets, scale, losses, static_cast<T*>(dlogits), scratch, rows, width);
  });
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
