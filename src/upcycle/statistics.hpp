// Mean and spread of the neurons of an FFN matrix, in double, in an order that nothing but the shape decides.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dropcycle {

struct NeuronStatistics {
  std::int64_t weights = 0;     // of one neuron
  std::vector<double> mean;     // [F]
  std::vector<double> squares;  // [F], Σ (w - mean)²
};

// Of every row of w [rows, columns].
template <class T>
NeuronStatistics row_statistics(const T* w, std::int64_t rows, std::int64_t columns);
// Of every column.
template <class T>
NeuronStatistics column_statistics(const T* w, std::int64_t rows, std::int64_t columns);

struct BlockStatistics {
  double mean = 0, standard_deviation = 0;
};
// Over all weights of the neurons in S: with n weights a neuron,
//   μ = Σ_S mean_f / |S|,   σ² = Σ_S (squares_f + n (mean_f - μ)²) / (n |S|).
// Zeros if S is empty.
BlockStatistics block_statistics(const NeuronStatistics& neurons, std::span<const std::int64_t> indices);

}  // namespace dropcycle
