// Tensors of any element type as arrays of double, so that every reference operation is one plain loop in double.
#pragma once

#include <vector>

#include "dropcycle/core/tensor.hpp"

namespace dropcycle::reference {

// Copies the elements; an empty tensor gives an empty array.
std::vector<double> read(const Tensor& x);
std::vector<std::int32_t> read_indices(const Tensor& x);
inline std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }
// Stores values rounded once to the element type of `out`.
void write(const std::vector<double>& values, const Tensor& out);

}  // namespace dropcycle::reference
