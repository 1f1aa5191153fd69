// Tensor: a non-owning view of a contiguous row-major array. Memory belongs to Buffer and Arena (device/).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "dropcycle/core/dtype.hpp"
#include "dropcycle/core/error.hpp"

namespace dropcycle {

// Up to four sizes. Shape{} is a scalar (one element).
class Shape {
 public:
  static constexpr int kMaxDims = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes);
  explicit Shape(std::span<const std::int64_t> sizes);

  int dims() const { return dims_; }
  std::int64_t operator[](int dim) const { return sizes_[static_cast<std::size_t>(dim)]; }
  void set(int dim, std::int64_t size) { sizes_[static_cast<std::size_t>(dim)] = size; }
  std::int64_t elements() const;
  std::span<const std::int64_t> sizes() const { return {sizes_.data(), static_cast<std::size_t>(dims_)}; }
  bool operator==(const Shape& other) const;

 private:
  std::array<std::int64_t, kMaxDims> sizes_{};
  int dims_ = 0;
};

// "[3, 4]".
std::string to_string(const Shape& shape);

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;

  Tensor() = default;
  Tensor(void* data_, DType dtype_, const Shape& shape_) : data(data_), dtype(dtype_), shape(shape_) {}
  // View of typed memory.
  template <class T>
  Tensor(T* data_, const Shape& shape_) : data(data_), dtype(DTypeOf<T>::value), shape(shape_) {}

  explicit operator bool() const { return data != nullptr; }
  std::int64_t elements() const { return shape.elements(); }
  std::int64_t bytes() const { return elements() * size_bytes(dtype); }

  // Typed pointer; throws Error{internal} if the element type isn't T.
  template <class T>
  T* as() const {
    require(dtype == DTypeOf<T>::value, "tensor {} holds {}, not {}", to_string(shape), dropcycle::name(dtype),
            dropcycle::name(DTypeOf<T>::value));
    return static_cast<T*>(data);
  }

  // Rows [first, first + count) of the leading dim.
  Tensor rows(std::int64_t first, std::int64_t count) const;
  // Element `index` of the leading dim, without that dim.
  Tensor operator[](std::int64_t index) const;
  // The same memory with another shape of as many elements.
  Tensor reshaped(const Shape& shape) const;
};

}  // namespace dropcycle
