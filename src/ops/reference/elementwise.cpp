#include <algorithm>
#include <cmath>

#include "../host_operations.hpp"
#include "dropcycle/device/arena.hpp"
#include "reference_ops.hpp"
#include "values.hpp"

namespace dropcycle {
namespace {

using reference::read;
using reference::read_indices;
using reference::size;
using reference::write;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace

void ReferenceOps::fill_zero(const Tensor& x) { write(std::vector<double>(size(x.elements())), x); }

void ReferenceOps::convert(const Tensor& x, const Tensor& out) { write(read(x), out); }

void ReferenceOps::copy_columns(const Columns& x, const Columns& out, std::int64_t width) {
  const auto from = read(x.matrix);
  auto to = read(out.matrix);
  const auto columns = static_cast<std::size_t>(width);
  const auto stride = [](const Columns& c) { return static_cast<std::size_t>(c.matrix.shape[1]); };
  for (std::size_t r = 0; r < static_cast<std::size_t>(x.matrix.shape[0]); ++r) {
    const double* row = &from[r * stride(x) + static_cast<std::size_t>(x.first)];
    std::copy(row, row + columns, &to[r * stride(out) + static_cast<std::size_t>(out.first)]);
  }
  write(to, out.matrix);
}

void ReferenceOps::add(const Tensor& a, const Tensor& b, const Tensor& y) {
  auto sum = read(a);
  const auto bv = read(b);
  require(sum.size() == bv.size(), "sum of {} and {}", to_string(a.shape), to_string(b.shape));
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += bv[i];
  write(sum, y);
}

void ReferenceOps::jitter(const Tensor& x, const RandomStream& stream, std::uint64_t first, double amplitude,
                          const Tensor& y) {
  auto values = read(x);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] *= 1 + amplitude * (2 * stream.uniform(first + i) - 1);
  write(values, y);
}

void ReferenceOps::fill_normal(const RandomStream& stream, std::uint64_t first, double mean, double standard_deviation,
                               const Tensor& out) {
  fill_normal_on_host(stream, first, mean, standard_deviation, out);
}

void ReferenceOps::embedding(const Tensor& tokens, const Tensor& w, const Tensor& y) {
  const auto ids = read_indices(tokens);
  const auto wv = read(w);
  const std::size_t hidden = size(w.shape[1]);
  std::vector<double> yv(ids.size() * hidden);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    for (std::size_t h = 0; ids[t] >= 0 && h < hidden; ++h) yv[t * hidden + h] = wv[size(ids[t]) * hidden + h];
  }
  write(yv, y);
}

void ReferenceOps::embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) {
  const auto ids = read_indices(tokens);
  const auto dyv = read(dy);
  auto dwv = read(dw);
  const std::size_t hidden = size(dw.shape[1]);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    for (std::size_t h = 0; ids[t] >= 0 && h < hidden; ++h) dwv[size(ids[t]) * hidden + h] += dyv[t * hidden + h];
  }
  write(dwv, dw);
}

void ReferenceOps::add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon,
                                const Tensor& sum, const Tensor& y, const Tensor& inv_rms) {
  if (delta) add(x, delta, sum);
  const auto xv = read(delta ? sum : x), wv = read(w);
  const std::size_t hidden = wv.size(), tokens = size(x.shape[0]);
  std::vector<double> yv(xv.size()), inv(tokens);
  for (std::size_t t = 0; t < tokens; ++t) {
    double squares = 0;
    for (std::size_t h = 0; h < hidden; ++h) squares += xv[t * hidden + h] * xv[t * hidden + h];
    inv[t] = 1 / std::sqrt(squares / static_cast<double>(hidden) + epsilon);
    for (std::size_t h = 0; h < hidden; ++h) yv[t * hidden + h] = xv[t * hidden + h] * inv[t] * wv[h];
  }
  write(yv, y);
  write(inv, inv_rms);
}

void ReferenceOps::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                                     const Tensor& dresidual, const Tensor& dx, const Tensor& dw) {
  const auto dyv = read(dy), xv = read(x), wv = read(w), inv = read(inv_rms), residual = read(dresidual);
  auto dwv = read(dw);
  const std::size_t hidden = wv.size();
  std::vector<double> dxv(xv.size());
  for (std::size_t t = 0; t < inv.size(); ++t) {
    double dot = 0;
    for (std::size_t h = 0; h < hidden; ++h) dot += dyv[t * hidden + h] * wv[h] * xv[t * hidden + h];
    const double pull = inv[t] * inv[t] * inv[t] * dot / static_cast<double>(hidden);
    for (std::size_t h = 0; h < hidden; ++h) {
      const std::size_t i = t * hidden + h;
      dxv[i] = (residual.empty() ? 0.0 : residual[i]) + dyv[i] * wv[h] * inv[t] - xv[i] * pull;
      dwv[h] += dyv[i] * xv[i] * inv[t];
    }
  }
  write(dxv, dx);
  write(dwv, dw);
}

void ReferenceOps::swiglu(const Tensor& gate_up, const Tensor& y) {
  const auto in = read(gate_up);
  const std::size_t tokens = size(y.shape[0]), width = size(y.shape[1]);
  std::vector<double> yv(tokens * width);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t f = 0; f < width; ++f) {
      const double gate = in[t * 2 * width + f], up = in[t * 2 * width + width + f];
      yv[t * width + f] = gate * sigmoid(gate) * up;
    }
  }
  write(yv, y);
}

void ReferenceOps::swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) {
  const auto in = read(gate_up), dyv = read(dy);
  const std::size_t tokens = size(dy.shape[0]), width = size(dy.shape[1]);
  std::vector<double> din(in.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t f = 0; f < width; ++f) {
      const std::size_t g = t * 2 * width + f, u = g + width;
      const double s = sigmoid(in[g]), d = dyv[t * width + f];
      din[g] = d * in[u] * s * (1 + in[g] * (1 - s));
      din[u] = d * in[g] * s;
    }
  }
  if (y) swiglu(gate_up, y);
  write(din, dgate_up);
}

void ReferenceOps::cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                                 const Tensor& dlogits) {
  const auto lv = read(logits);
  const auto ids = read_indices(targets);
  const std::size_t vocab = size(logits.shape[1]);
  std::vector<double> out(ids.size()), d(dlogits ? lv.size() : 0);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    if (ids[t] < 0) continue;
    const double* row = &lv[t * vocab];
    const double top = *std::max_element(row, row + vocab);
    double sum = 0;
    for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - top);
    out[t] = top + std::log(sum) - row[ids[t]];
    if (!dlogits) continue;
    for (std::size_t v = 0; v < vocab; ++v) {
      d[t * vocab + v] = scale * (std::exp(row[v] - top) / sum - (v == size(ids[t]) ? 1.0 : 0.0));
    }
  }
  write(out, losses);
  if (dlogits) write(d, dlogits);
}

void ReferenceOps::cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first,
                                      const Tensor& part) {
  const auto lv = read(logits);
  const auto ids = read_indices(targets);
  const std::size_t columns = size(logits.shape[1]);
  std::vector<double> out(3 * ids.size());
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const double* row = &lv[t * columns];
    const double top = *std::max_element(row, row + columns);
    out[3 * t] = top;
    for (std::size_t v = 0; v < columns; ++v) out[3 * t + 1] += std::exp(row[v] - top);
    const std::int64_t column = ids[t] - first;
    if (ids[t] >= 0 && column >= 0 && column < logits.shape[1]) out[3 * t + 2] = row[column];
  }
  write(out, part);
}

void ReferenceOps::cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets,
                                          std::int64_t first, double scale, const Tensor& losses,
                                          const Tensor& dlogits) {
  const auto pv = read(parts), lv = read(logits);
  const auto ids = read_indices(targets);
  const std::size_t columns = size(logits.shape[1]), ranks = size(parts.shape[0]), rows = ids.size();
  std::vector<double> out(rows), d(dlogits ? lv.size() : 0);
  for (std::size_t t = 0; t < rows; ++t) {
    if (ids[t] < 0) continue;
    double top = pv[3 * t], sum = 0, target = 0;
    for (std::size_t r = 1; r < ranks; ++r) top = std::max(top, pv[3 * (r * rows + t)]);
    for (std::size_t r = 0; r < ranks; ++r) {
      const double* part = &pv[3 * (r * rows + t)];
      sum += part[1] * std::exp(part[0] - top);
      target += part[2];
    }
    out[t] = top + std::log(sum) - target;
    for (std::size_t v = 0; dlogits && v < columns; ++v) {
      const bool hit = static_cast<std::int64_t>(v) + first == ids[t];
      d[t * columns + v] = scale * (std::exp(lv[t * columns + v] - top) / sum - (hit ? 1.0 : 0.0));
    }
  }
  write(out, losses);
  if (dlogits) write(d, dlogits);
}

void ReferenceOps::split_masters(const Tensor& masters, const Tensor& weight, const Tensor& low) {
  const auto* from = masters.as<float>();
  for (std::int64_t i = 0; i < masters.elements(); ++i) {
    const MasterHalves halves(from[i]);
    weight.as<BF16>()[i] = halves.weight;
    if (low) low.as<std::int16_t>()[i] = halves.low;
  }
}

void ReferenceOps::join_masters(const Tensor& weight, const Tensor& low, const Tensor& masters) {
  auto* to = masters.as<float>();
  for (std::int64_t i = 0; i < masters.elements(); ++i) {
    to[i] = MasterHalves(weight.as<BF16>()[i], low.as<std::int16_t>()[i]).master();
  }
}

double ReferenceOps::squared_norm(const Tensor& x) {
  double sum = 0;
  for (const double value : read(x)) sum += value * value;
  return sum;
}

void ReferenceOps::adamw(const AdamwArguments& a, const Tensor& gradient, const Tensor& master, const Tensor& m,
                         const Tensor& v, const Tensor& weight) {
  const auto g = read(gradient);
  const OwnedTensor joined(DType::f32, weight ? master.shape : Shape{0});
  if (weight) join_masters(weight, master, joined);
  const Tensor whole = weight ? joined.view() : master;
  auto p = read(whole), mv = read(m), vv = read(v);
  const double correction1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double correction2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double scaled = a.gradient_scale * g[i];
    mv[i] = a.beta1 * mv[i] + (1 - a.beta1) * scaled;
    vv[i] = a.beta2 * vv[i] + (1 - a.beta2) * scaled * scaled;
    const double update = mv[i] / correction1 / (std::sqrt(vv[i] / correction2) + a.epsilon);
    p[i] -= a.learning_rate * (update + a.weight_decay * p[i]);
  }
  write(mv, m);
  write(vv, v);
  write(p, whole);
  if (weight) split_masters(whole, weight, master);
}

}  // namespace dropcycle
