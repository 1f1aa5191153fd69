#include "statistics.hpp"

#include <cmath>

#include "dropcycle/core/threads.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kLanes = 8;  // independent partial sums of a row; they are added in order

// Σ over a row of term(w).
template <class T, class Term>
double sum_row(const T* w, std::int64_t count, Term term) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(static_cast<double>(w[i + lane]));
  }
  for (; i < count; ++i) lanes[i % kLanes] += term(static_cast<double>(w[i]));
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

NeuronStatistics make_statistics(std::int64_t neurons, std::int64_t weights) {
  const auto count = static_cast<std::size_t>(neurons);
  return {weights, std::vector<double>(count), std::vector<double>(count)};
}

}  // namespace

template <class T>
NeuronStatistics row_statistics(const T* w, std::int64_t rows, std::int64_t columns) {
  NeuronStatistics result = make_statistics(rows, columns);
  in_parallel(rows, 64, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const T* values = w + row * columns;
      const double mean = sum_row(values, columns, [](double x) { return x; }) / static_cast<double>(columns);
      const auto place = static_cast<std::size_t>(row);
      result.mean[place] = mean;
      result.squares[place] = sum_row(values, columns, [mean](double x) { return (x - mean) * (x - mean); });
    }
  });
  return result;
}

template <class T>
NeuronStatistics column_statistics(const T* w, std::int64_t rows, std::int64_t columns) {
  NeuronStatistics result = make_statistics(columns, rows);
  double* mean = result.mean.data();
  double* squares = result.squares.data();
  in_parallel(columns, 64, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = first; column < last; ++column) mean[column] += w[row * columns + column];
    }
    for (std::int64_t column = first; column < last; ++column) mean[column] /= static_cast<double>(rows);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = first; column < last; ++column) {
        const double difference = w[row * columns + column] - mean[column];
        squares[column] += difference * difference;
      }
    }
  });
  return result;
}

template NeuronStatistics row_statistics(const float*, std::int64_t, std::int64_t);
template NeuronStatistics row_statistics(const double*, std::int64_t, std::int64_t);
template NeuronStatistics column_statistics(const float*, std::int64_t, std::int64_t);
template NeuronStatistics column_statistics(const double*, std::int64_t, std::int64_t);

BlockStatistics block_statistics(const NeuronStatistics& neurons, std::span<const std::int64_t> indices) {
  if (indices.empty()) return {};
  const auto weights = static_cast<double>(neurons.weights);
  const auto count = static_cast<double>(indices.size());
  double mean = 0, squares = 0;
  for (const std::int64_t index : indices) mean += neurons.mean[static_cast<std::size_t>(index)];
  mean /= count;
  for (const std::int64_t index : indices) {
    const double difference = neurons.mean[static_cast<std::size_t>(index)] - mean;
    squares += neurons.squares[static_cast<std::size_t>(index)] + weights * difference * difference;
  }
  return {mean, std::sqrt(squares / (weights * count))};
}

}  // namespace dropcycle
