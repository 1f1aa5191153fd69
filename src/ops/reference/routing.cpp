#include <algorithm>
#include <cmath>
#include <numeric>

#include "../host_operations.hpp"
#include "reference_ops.hpp"
#include "values.hpp"

namespace dropcycle {
namespace {

using reference::read;
using reference::read_indices;
using reference::size;
using reference::write;

}  // namespace

void ReferenceOps::router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) { linear(x, {w}, logits); }

void ReferenceOps::router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                                          const Tensor& dw) {
  std::vector<double> product(size(dx.elements()));
  const Tensor scratch(product.data(), dx.shape);
  linear_dx(dlogits, {w}, scratch);
  add(dx, scratch, dx);
  linear_dw(dlogits, x, dw);
}

void ReferenceOps::route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
                         const Tensor& probabilities, const Tensor& lse) {
  const auto z = read(logits);
  const std::size_t tokens = size(logits.shape[0]), count = size(logits.shape[1]), chosen = size(experts.shape[1]);
  std::vector<double> w(tokens * chosen), p(z.size()), sums(tokens);
  auto* ids = experts.as<std::int32_t>();
  std::vector<std::int32_t> order(count);
  for (std::size_t t = 0; t < tokens; ++t) {
    const double* row = &z[t * count];
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return row[a] > row[b]; });
    const double top = row[order[0]];
    double all = 0, kept = 0;
    for (std::size_t e = 0; e < count; ++e) all += std::exp(row[e] - top);
    for (std::size_t k = 0; k < chosen; ++k) kept += std::exp(row[order[k]] - top);
    for (std::size_t e = 0; e < count; ++e) p[t * count + e] = std::exp(row[e] - top) / all;
    for (std::size_t k = 0; k < chosen; ++k) {
      ids[t * chosen + k] = order[k];
      w[t * chosen + k] = std::exp(row[order[k]] - top) / (mode == RouterMode::topk_softmax ? kept : all);
    }
    sums[t] = top + std::log(all);
  }
  write(w, weights);
  write(p, probabilities);
  write(sums, lse);
}

void ReferenceOps::route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights,
                                  const Tensor& probabilities, const Tensor& lse, const Tensor& dweights,
                                  const Tensor& dprobabilities, double z, const Tensor& dlogits) {
  const auto ids = read_indices(experts);
  const auto w = read(weights), p = read(probabilities), sums = read(lse), dw = read(dweights),
             a = read(dprobabilities);
  const std::size_t tokens = sums.size(), count = size(probabilities.shape[1]), chosen = size(weights.shape[1]);
  std::vector<double> d(p.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    double dot = 0, mean = 0;
    for (std::size_t k = 0; k < chosen; ++k) dot += dw[t * chosen + k] * w[t * chosen + k];
    for (std::size_t e = 0; e < count && !a.empty(); ++e) mean += p[t * count + e] * a[e];
    for (std::size_t e = 0; e < count; ++e) {
      const double pe = p[t * count + e];
      d[t * count + e] = pe * ((a.empty() ? 0.0 : a[e] - mean) + 2 * z * sums[t]);
      if (mode == RouterMode::softmax_topk) d[t * count + e] -= pe * dot;
    }
    for (std::size_t k = 0; k < chosen; ++k) {
      const std::size_t i = t * chosen + k;
      const double own = mode == RouterMode::topk_softmax ? w[i] * (dw[i] - dot) : w[i] * dw[i];
      d[t * count + size(ids[i])] += own;
    }
  }
  write(d, dlogits);
}

void ReferenceOps::sum_rows(const Tensor& x, const Tensor& out) {
  const auto xv = read(x);
  auto sums = read(out);
  for (std::size_t i = 0; i < xv.size(); ++i) sums[i % sums.size()] += xv[i];
  write(sums, out);
}

void ReferenceOps::sort_rows(const Tensor& experts, const Tensor& counts, const Tensor& token_of_row,
                             const Tensor& slots) {
  sort_rows_on_host(experts, counts, token_of_row, slots);
}

void ReferenceOps::gather_rows(const Tensor& x, const Tensor& index, const Tensor& out) {
  const auto xv = read(x);
  const auto rows = read_indices(index);
  const std::size_t width = size(out.shape[1]);
  std::vector<double> y;
  for (const std::int32_t row : rows) {
    const auto from = xv.begin() + static_cast<std::ptrdiff_t>(size(row) * width);
    y.insert(y.end(), from, from + static_cast<std::ptrdiff_t>(width));
  }
  write(y, out);
}

void ReferenceOps::combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) {
  const auto zv = read(z), w = read(weights);
  const auto rows = read_indices(slots);
  const std::size_t chosen = size(slots.shape[1]), width = size(y.shape[1]);
  std::vector<double> sum(size(y.elements()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t h = 0; h < width; ++h) {
      sum[i / chosen * width + h] += (w.empty() ? 1.0 : w[i]) * zv[size(rows[i]) * width + h];
    }
  }
  write(sum, y);
}

void ReferenceOps::combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights,
                                    const Tensor& dz, const Tensor& dweights) {
  const auto dyv = read(dy), zv = read(z), w = read(weights);
  const auto rows = read_indices(slots);
  const std::size_t chosen = size(slots.shape[1]), width = size(dy.shape[1]);
  std::vector<double> dzv(zv.size()), dw(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t h = 0; h < width; ++h) {
      const double g = dyv[i / chosen * width + h];
      dzv[size(rows[i]) * width + h] = w[i] * g;
      dw[i] += g * zv[size(rows[i]) * width + h];
    }
  }
  write(dzv, dz);
  write(dw, dweights);
}

}  // namespace dropcycle
