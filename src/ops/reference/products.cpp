#include "reference_ops.hpp"
#include "values.hpp"

namespace dropcycle {
namespace {

using reference::read;
using reference::write;

// The sizes of y[T,O] = x[T,I] w[O,I]ᵀ.
struct Sizes {
  std::size_t rows, outputs, inputs;
};

Sizes check(const Tensor& x, const Shape& w, const Tensor& y) {
  require(x.shape.dims() == 2 && y.shape.dims() == 2 && w.dims() == 2 && x.shape[0] == y.shape[0] &&
              x.shape[1] == w[1] && y.shape[1] == w[0],
          "product of x {} and w {} into y {}", to_string(x.shape), to_string(w), to_string(y.shape));
  return {static_cast<std::size_t>(x.shape[0]), static_cast<std::size_t>(w[0]), static_cast<std::size_t>(w[1])};
}

// Calls f(e, first row, rows) for each expert.
template <class Function>
void for_each_expert(std::span<const std::int64_t> offsets, Function f) {
  for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
    f(static_cast<std::int64_t>(e), offsets[e], offsets[e + 1] - offsets[e]);
  }
}

}  // namespace

void ReferenceOps::linear(const Tensor& x, const Weight& w, const Tensor& y) {
  const Sizes n = check(x, w.tensor.shape, y);
  const auto xv = read(x), wv = read(w.tensor);
  std::vector<double> yv(n.rows * n.outputs);
  for (std::size_t t = 0; t < n.rows; ++t) {
    for (std::size_t o = 0; o < n.outputs; ++o) {
      double sum = 0;
      for (std::size_t i = 0; i < n.inputs; ++i) sum += xv[t * n.inputs + i] * wv[o * n.inputs + i];
      yv[t * n.outputs + o] = sum;
    }
  }
  write(yv, y);
}

void ReferenceOps::linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) {
  const Sizes n = check(dx, w.tensor.shape, dy);
  const auto dyv = read(dy), wv = read(w.tensor);
  std::vector<double> dxv(n.rows * n.inputs);
  for (std::size_t t = 0; t < n.rows; ++t) {
    for (std::size_t o = 0; o < n.outputs; ++o) {
      const double g = dyv[t * n.outputs + o];
      for (std::size_t i = 0; i < n.inputs; ++i) dxv[t * n.inputs + i] += g * wv[o * n.inputs + i];
    }
  }
  write(dxv, dx);
}

void ReferenceOps::linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) {
  const Sizes n = check(x, dw.shape, dy);
  const auto dyv = read(dy), xv = read(x);
  auto dwv = read(dw);
  for (std::size_t t = 0; t < n.rows; ++t) {
    for (std::size_t o = 0; o < n.outputs; ++o) {
      const double g = dyv[t * n.outputs + o];
      for (std::size_t i = 0; i < n.inputs; ++i) dwv[o * n.inputs + i] += g * xv[t * n.inputs + i];
    }
  }
  write(dwv, dw);
}

void ReferenceOps::grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                                  const Tensor& y) {
  for_each_expert(offsets, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    linear(x.rows(first, rows), {w.tensor[e], w.version}, y.rows(first, rows));
  });
}

void ReferenceOps::grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                                     const Tensor& dx) {
  for_each_expert(offsets, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    linear_dx(dy.rows(first, rows), {w.tensor[e], w.version}, dx.rows(first, rows));
  });
}

void ReferenceOps::grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                                     const Tensor& dw) {
  for_each_expert(offsets, [&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    linear_dw(dy.rows(first, rows), x.rows(first, rows), dw[e]);
  });
}

}  // namespace dropcycle
