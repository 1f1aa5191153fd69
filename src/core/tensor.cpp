#include "dropcycle/core/tensor.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace dropcycle {

std::string_view name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::f16:
      return "f16";
    case DType::i16:
      return "i16";
  }
  return "unknown";
}

DType parse_dtype(std::string_view text) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32, DType::f16}) {
    if (text == name(dtype)) return dtype;
  }
  fail(Status::usage, "unknown element type '{}': expected f64, f32, bf16, i32 or f16", text);
}

Shape::Shape(std::initializer_list<std::int64_t> sizes)
    : Shape(std::span<const std::int64_t>(sizes.begin(), sizes.size())) {}

Shape::Shape(std::span<const std::int64_t> sizes) : dims_(static_cast<int>(sizes.size())) {
  require(dims_ <= kMaxDims, "a shape of {} dims: at most {}", dims_, kMaxDims);
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
}

std::int64_t Shape::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t size : sizes()) product *= size;
  return product;
}

bool Shape::operator==(const Shape& other) const { return std::ranges::equal(sizes(), other.sizes()); }

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape.sizes(), ", ")); }

Tensor Tensor::rows(std::int64_t first, std::int64_t count) const {
  require(shape.dims() >= 1 && first >= 0 && count >= 0 && first + count <= shape[0], "rows {}+{} of tensor {}", first,
          count, to_string(shape));
  std::array<std::int64_t, Shape::kMaxDims> sizes{};
  std::ranges::copy(shape.sizes(), sizes.begin());
  sizes[0] = count;
  const std::int64_t row_bytes = shape[0] == 0 ? 0 : bytes() / shape[0];
  return {static_cast<std::byte*>(data) + first * row_bytes, dtype,
          Shape(std::span(sizes.data(), static_cast<std::size_t>(shape.dims())))};
}

Tensor Tensor::operator[](std::int64_t index) const {
  const Tensor row = rows(index, 1);
  return {row.data, dtype, Shape(shape.sizes().subspan(1))};
}

Tensor Tensor::reshaped(const Shape& new_shape) const {
  require(new_shape.elements() == elements(), "tensor {} can't take shape {}", to_string(shape), to_string(new_shape));
  return {data, dtype, new_shape};
}

}  // namespace dropcycle
