// The yardstick of the tests of Ops: every operation as anybody would first write it, one loop in float, values rounded
// to the element type wherever they are stored. A backend may err twice as much as this does, both against float64.
// What is not overridden here is exact up to one rounding in ReferenceOps already.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../src/ops/reference/reference_ops.hpp"
#include "../../src/ops/reference/values.hpp"
#include "dropcycle/device/arena.hpp"

namespace dropcycle {

class PlainOps : public ReferenceOps {
  using Floats = std::vector<float>;
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
  static Floats read(const Tensor& x) {
    const auto values = reference::read(x);
    return {values.begin(), values.end()};
  }
  static void write(const Floats& values, const Tensor& x) { reference::write({values.begin(), values.end()}, x); }
  // As stored in the type of `like`.
  static float rounded(float value, const Tensor& like) {
    return like.dtype == DType::bf16 ? static_cast<float>(BF16(value)) : value;
  }
  static std::int64_t width(const Tensor& x) { return x.shape[x.shape.dims() - 1]; }
  static std::size_t place(const Columns& x, std::int64_t row, std::int64_t column) {
    return at(row * width(x.matrix) + x.first + column);
  }
  // Key rows [from, to] that query t sees, of the sequence that begins at `begin`.
  struct Seen {
    std::int64_t begin, from, to;
  };
  static Seen seen(const AttentionShape& s, const AttentionMask& mask, std::int64_t t) {
    const std::int64_t begin = t / s.sequence * s.key_count();
    const std::int64_t last =
        mask.last_key ? mask.last_key.as<std::int32_t>()[t] : s.key_count() - s.sequence + t % s.sequence;
    return {begin, begin + (mask.first_key ? mask.first_key.as<std::int32_t>()[t] : 0), begin + last};
  }

  // c[m,n] (+)= a[m,k] b[k,n], where the operands' strides are given.
  static void product(const float* a, std::int64_t a_row, std::int64_t a_column, const float* b, std::int64_t b_row,
                      std::int64_t b_column, float* c, std::int64_t m, std::int64_t n, std::int64_t k) {
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        float sum = 0;
        for (std::int64_t l = 0; l < k; ++l) sum += a[i * a_row + l * a_column] * b[l * b_row + j * b_column];
        c[i * n + j] += sum;
      }
    }
  }

 public:
  void linear(const Tensor& x, const Weight& w, const Tensor& y) override {
    grouped_linear(x, std::vector<std::int64_t>{0, x.shape[0]}, w, y);
  }
  void linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) override {
    grouped_linear_dx(dy, std::vector<std::int64_t>{0, dy.shape[0]}, w, dx);
  }
  void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) override {
    grouped_linear_dw(dy, x, std::vector<std::int64_t>{0, dy.shape[0]}, dw);
  }
  void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                      const Tensor& y) override {
    const auto xv = read(x), wv = read(w.tensor);
    const std::int64_t in = width(x), out = width(y);
    Floats yv(at(y.elements()));
    for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
      product(xv.data() + offsets[e] * in, in, 1, wv.data() + at(out * in) * e, 1, in, yv.data() + offsets[e] * out,
              offsets[e + 1] - offsets[e], out, in);
    }
    write(yv, y);
  }
  void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                         const Tensor& dx) override {
    const auto dyv = read(dy), wv = read(w.tensor);
    const std::int64_t in = width(dx), out = width(dy);
    Floats dxv(at(dx.elements()));
    for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
      product(dyv.data() + offsets[e] * out, out, 1, wv.data() + at(out * in) * e, in, 1, dxv.data() + offsets[e] * in,
              offsets[e + 1] - offsets[e], in, out);
    }
    write(dxv, dx);
  }
  void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                         const Tensor& dw) override {
    const auto dyv = read(dy), xv = read(x);
    const std::int64_t in = width(x), out = width(dy);
    auto sums = read(dw);
    for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
      product(dyv.data() + offsets[e] * out, 1, out, xv.data() + offsets[e] * in, in, 1, sums.data() + at(out * in) * e,
              out, in, offsets[e + 1] - offsets[e]);
    }
    write(sums, dw);
  }

  void embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) override {
    const auto dyv = read(dy);
    auto sums = read(dw);
    const std::int64_t h = width(dy);
    for (std::int64_t t = 0; t < dy.shape[0]; ++t) {
      if (tokens.as<std::int32_t>()[t] < 0) continue;
      for (std::int64_t i = 0; i < h; ++i) sums[at(tokens.as<std::int32_t>()[t] * h + i)] += dyv[at(t * h + i)];
    }
    write(sums, dw);
  }

  void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon, const Tensor& sum,
                    const Tensor& y, const Tensor& inv_rms) override {
    auto s = read(x);
    const auto d = read(delta), wv = read(w);
    for (std::size_t i = 0; i < d.size(); ++i) s[i] = rounded(s[i] + d[i], x);
    if (delta) write(s, sum);
    const std::int64_t h = width(x);
    Floats inverse(at(x.shape[0])), yv(s.size());
    for (std::int64_t t = 0; t < x.shape[0]; ++t) {
      float squares = 0;
      for (std::int64_t i = 0; i < h; ++i) squares += s[at(t * h + i)] * s[at(t * h + i)];
      inverse[at(t)] = 1 / std::sqrt(squares / static_cast<float>(h) + static_cast<float>(epsilon));
      for (std::int64_t i = 0; i < h; ++i) yv[at(t * h + i)] = s[at(t * h + i)] * inverse[at(t)] * wv[at(i)];
    }
    write(yv, y);
    write(inverse, inv_rms);
  }
  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                         const Tensor& dresidual, const Tensor& dx, const Tensor& dw) override {
    const auto g = read(dy), xv = read(x), wv = read(w), inverse = read(inv_rms), residual = read(dresidual);
    auto sums = read(dw);
    const std::int64_t h = width(x);
    Floats out(xv.size());
    for (std::int64_t t = 0; t < x.shape[0]; ++t) {
      const float r = inverse[at(t)];
      float dot = 0;
      for (std::int64_t i = 0; i < h; ++i) dot += g[at(t * h + i)] * wv[at(i)] * xv[at(t * h + i)];
      for (std::int64_t i = 0; i < h; ++i) {
        const std::size_t j = at(t * h + i);
        sums[at(i)] += g[j] * xv[j] * r;
        out[j] = (residual.empty() ? 0 : residual[j]) + g[j] * wv[at(i)] * r - xv[j] * r * r * r * dot / float(h);
      }
    }
    write(out, dx);
    write(sums, dw);
  }

  void rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies, std::int64_t head_size,
            std::int64_t rotated_heads, int direction) override {
    auto v = read(x);
    const std::int64_t half = head_size / 2, row = width(x);
    for (std::int64_t t = 0; t < positions.elements(); ++t) {
      for (std::int64_t i = 0; i < rotated_heads * half; ++i) {
        const double angle = positions.as<std::int32_t>()[t] * inverse_frequencies.as<double>()[i % half];
        const auto c = static_cast<float>(std::cos(angle)), s = static_cast<float>(direction * std::sin(angle));
        const std::size_t low = at(t * row + i / half * head_size + i % half), high = low + at(half);
        const float a = v[low], b = v[high];
        v[low] = a * c - b * s;
        v[high] = b * c + a * s;
      }
    }
    write(v, x);
  }

  // Unfused attention: probabilities are stored in the element type before they meet the values.
  void attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask, const Tensor& out,
                 const Tensor& lse) override {
    const auto q = read(x.q.matrix), k = read(x.k.matrix), v = read(x.v.matrix);
    Floats y(at(out.elements())), sums(at(shape.tokens() * shape.heads)), p(at(shape.key_count()));
    const std::int64_t d = shape.head_size;
    for (std::int64_t t = 0; t < shape.tokens(); ++t) {
      const auto [begin, from, to] = seen(shape, mask, t);
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const std::int64_t kv = h / (shape.heads / shape.kv_heads);
        float top = -INFINITY, sum = 0;
        for (std::int64_t s = from; s <= to; ++s) {
          float dot = 0;
          for (std::int64_t i = 0; i < d; ++i) dot += q[place(x.q, t, h * d + i)] * k[place(x.k, s, kv * d + i)];
          p[at(s - begin)] = dot / std::sqrt(static_cast<float>(d));
          top = std::max(top, p[at(s - begin)]);
        }
        for (std::int64_t s = from; s <= to; ++s) sum += std::exp(p[at(s - begin)] - top);
        for (std::int64_t s = from; s <= to; ++s) {
          const float weight = rounded(std::exp(p[at(s - begin)] - top) / sum, out);
          for (std::int64_t i = 0; i < d; ++i) {
            y[at((t * shape.heads + h) * d + i)] += weight * v[place(x.v, s, kv * d + i)];
          }
        }
        sums[at(t * shape.heads + h)] = top + std::log(sum);
      }
    }
    write(y, out);
    if (lse) write(sums, lse);
  }
  void attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                          const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) override {
    const auto q = read(x.q.matrix), k = read(x.k.matrix), v = read(x.v.matrix);
    const auto y = read(out), sums = read(lse), dy = read(dout);
    const std::int64_t d = shape.head_size, keys = shape.batch * shape.key_count();
    Floats dq(at(shape.tokens() * shape.heads * d)), dk(at(keys * shape.kv_heads * d)), dv(dk.size());
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    for (std::int64_t t = 0; t < shape.tokens(); ++t) {
      const auto [begin, from, to] = seen(shape, mask, t);
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const std::int64_t kv = h / (shape.heads / shape.kv_heads), o = (t * shape.heads + h) * d;
        float delta = 0;
        for (std::int64_t i = 0; i < d; ++i) delta += dy[at(o + i)] * y[at(o + i)];
        for (std::int64_t s = from; s <= to; ++s) {
          float score = 0, dp = 0;
          for (std::int64_t i = 0; i < d; ++i) score += q[place(x.q, t, h * d + i)] * k[place(x.k, s, kv * d + i)];
          for (std::int64_t i = 0; i < d; ++i) dp += dy[at(o + i)] * v[place(x.v, s, kv * d + i)];
          const float p = std::exp(score * scale - sums[at(t * shape.heads + h)]);
          const float stored = rounded(p, out), ds = rounded(p * (dp - delta) * scale, out);
          for (std::int64_t i = 0; i < d; ++i) {
            const std::size_t key = at((s * shape.kv_heads + kv) * d + i);
            dv[key] += stored * dy[at(o + i)];
            dq[at(o + i)] += ds * k[place(x.k, s, kv * d + i)];
            dk[key] += ds * q[place(x.q, t, h * d + i)];
          }
        }
      }
    }
    const auto store = [&](Floats& values, const Columns& columns, std::int64_t width) {
      const Tensor flat(values.data(), Shape{static_cast<std::int64_t>(values.size()) / width, width});
      copy_columns({flat, 0}, columns, width);
    };
    store(dq, dx.q, shape.heads * d);
    store(dk, dx.k, shape.kv_heads * d);
    store(dv, dx.v, shape.kv_heads * d);
  }

  void swiglu(const Tensor& gate_up, const Tensor& y) override {
    const auto x = read(gate_up);
    const std::int64_t f = width(y);
    Floats out(at(y.elements()));
    for (std::int64_t i = 0; i < y.elements(); ++i) {
      const float g = x[at(i / f * 2 * f + i % f)], u = x[at(i / f * 2 * f + f + i % f)];
      out[at(i)] = g / (1 + std::exp(-g)) * u;
    }
    write(out, y);
  }
  void swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) override {
    const auto x = read(gate_up), d = read(dy);
    const std::int64_t f = width(dy);
    Floats out(x.size());
    for (std::int64_t i = 0; i < dy.elements(); ++i) {
      const std::size_t gate = at(i / f * 2 * f + i % f), up = gate + at(f);
      const float s = 1 / (1 + std::exp(-x[gate]));
      out[gate] = d[at(i)] * x[up] * (s + x[gate] * s * (1 - s));
      out[up] = d[at(i)] * x[gate] * s;
    }
    if (y) swiglu(gate_up, y);
    write(out, dgate_up);
  }

  void router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) override { linear(x, {w}, logits); }
  void router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                              const Tensor& dw) override {
    auto sums = read(dx);
    const auto d = read(dlogits), wv = read(w);
    product(d.data(), w.shape[0], 1, wv.data(), w.shape[1], 1, sums.data(), dx.shape[0], w.shape[1], w.shape[0]);
    write(sums, dx);
    linear_dw(dlogits, x, dw);
  }
  void route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
             const Tensor& probabilities, const Tensor& lse) override {
    ReferenceOps::route(logits, mode, experts, weights, probabilities, lse);  // for the choice
    const auto x = read(logits);
    const std::int64_t n = width(logits), top_k = width(experts);
    Floats p(x.size()), w(at(weights.elements())), sums(at(lse.elements()));
    for (std::int64_t t = 0; t < logits.shape[0]; ++t) {
      const float* row = x.data() + t * n;
      const std::int32_t* chosen = experts.as<std::int32_t>() + t * top_k;
      float all = 0, kept = 0;
      const float top = row[chosen[0]];
      for (std::int64_t e = 0; e < n; ++e) all += std::exp(row[e] - top);
      for (std::int64_t k = 0; k < top_k; ++k) kept += std::exp(row[chosen[k]] - top);
      for (std::int64_t e = 0; e < n; ++e) p[at(t * n + e)] = std::exp(row[e] - top) / all;
      for (std::int64_t k = 0; k < top_k; ++k) {
        w[at(t * top_k + k)] = std::exp(row[chosen[k]] - top) / (mode == RouterMode::topk_softmax ? kept : all);
      }
      sums[at(t)] = top + std::log(all);
    }
    write(w, weights);
    write(p, probabilities);
    write(sums, lse);
  }
  void route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights, const Tensor& probabilities,
                      const Tensor& lse, const Tensor& dweights, const Tensor& dprobabilities, double z,
                      const Tensor& dlogits) override {
    const auto w = read(weights), p = read(probabilities), sums = read(lse), dw = read(dweights),
               a = read(dprobabilities);
    const std::int64_t n = width(probabilities), top_k = width(experts);
    Floats d(p.size());
    for (std::int64_t t = 0; t < probabilities.shape[0]; ++t) {
      float dot = 0, mean = 0;
      for (std::int64_t k = 0; k < top_k; ++k) dot += dw[at(t * top_k + k)] * w[at(t * top_k + k)];
      for (std::int64_t e = 0; e < n && !a.empty(); ++e) mean += p[at(t * n + e)] * a[at(e)];
      for (std::int64_t e = 0; e < n; ++e) {
        const std::size_t i = at(t * n + e);
        d[i] = p[i] * (a.empty() ? 0 : a[at(e)] - mean) + 2 * static_cast<float>(z) * sums[at(t)] * p[i];
        if (mode == RouterMode::softmax_topk) d[i] -= p[i] * dot;
      }
      for (std::int64_t k = 0; k < top_k; ++k) {
        const std::size_t i = at(t * top_k + k);
        d[at(t * n + experts.as<std::int32_t>()[i])] +=
            mode == RouterMode::topk_softmax ? w[i] * (dw[i] - dot) : w[i] * dw[i];
      }
    }
    write(d, dlogits);
  }
  void sum_rows(const Tensor& x, const Tensor& out) override {
    const auto v = read(x);
    auto sums = read(out);
    for (std::size_t i = 0; i < v.size(); ++i) sums[i % sums.size()] += v[i];
    write(sums, out);
  }

  void combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) override {
    const auto zv = read(z), w = read(weights);
    const std::int64_t h = width(y), top_k = width(slots);
    Floats out(at(y.elements()));
    for (std::int64_t i = 0; i < slots.elements(); ++i) {
      for (std::int64_t j = 0; j < h; ++j) {
        out[at(i / top_k * h + j)] += (w.empty() ? 1 : w[at(i)]) * zv[at(slots.as<std::int32_t>()[i] * h + j)];
      }
    }
    write(out, y);
  }
  void combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& dz,
                        const Tensor& dweights) override {
    const auto d = read(dy), zv = read(z), w = read(weights);
    const std::int64_t h = width(dy), top_k = width(slots);
    Floats out(zv.size()), dots(at(slots.elements()));
    for (std::int64_t i = 0; i < slots.elements(); ++i) {
      for (std::int64_t j = 0; j < h; ++j) {
        const std::size_t slot = at(slots.as<std::int32_t>()[i] * h + j);
        out[slot] = w[at(i)] * d[at(i / top_k * h + j)];
        dots[at(i)] += d[at(i / top_k * h + j)] * zv[slot];
      }
    }
    write(out, dz);
    write(dots, dweights);
  }

  void cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                     const Tensor& dlogits) override {
    const auto x = read(logits);
    const std::int64_t v = width(logits);
    Floats loss(at(losses.elements())), d(x.size());
    for (std::int64_t t = 0; t < losses.elements(); ++t) {
      const std::int32_t target = targets.as<std::int32_t>()[t];
      if (target < 0) continue;
      const float* row = x.data() + t * v;
      const float top = *std::max_element(row, row + v);
      float sum = 0;
      for (std::int64_t i = 0; i < v; ++i) sum += std::exp(row[i] - top);
      loss[at(t)] = top + std::log(sum) - row[target];
      for (std::int64_t i = 0; i < v; ++i) {
        d[at(t * v + i)] = static_cast<float>(scale) * (std::exp(row[i] - top) / sum - (i == target ? 1 : 0));
      }
    }
    write(loss, losses);
    if (dlogits) write(d, dlogits);
  }

  void cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first,
                          const Tensor& part) override {
    const auto x = read(logits);
    const std::int64_t v = width(logits);
    Floats out(at(part.elements()));
    for (std::int64_t t = 0; t < logits.shape[0]; ++t) {
      const float* row = x.data() + t * v;
      const std::int64_t column = targets.as<std::int32_t>()[t] - first;
      const float top = *std::max_element(row, row + v);
      float sum = 0;
      for (std::int64_t i = 0; i < v; ++i) sum += std::exp(row[i] - top);
      out[at(3 * t)] = top;
      out[at(3 * t + 1)] = sum;
      out[at(3 * t + 2)] = targets.as<std::int32_t>()[t] >= 0 && column >= 0 && column < v ? row[column] : 0;
    }
    write(out, part);
  }
  void cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets, std::int64_t first,
                              double scale, const Tensor& losses, const Tensor& dlogits) override {
    const auto x = read(logits), p = read(parts);
    const std::int64_t v = width(logits), rows = logits.shape[0];
    Floats loss(at(rows)), d(x.size());
    for (std::int64_t t = 0; t < rows; ++t) {
      const std::int32_t target = targets.as<std::int32_t>()[t];
      if (target < 0) continue;
      const auto part = [&](std::int64_t r, std::int64_t i) { return p[at(3 * (r * rows + t) + i)]; };
      float top = part(0, 0), sum = 0, logit = 0;
      for (std::int64_t r = 1; r < parts.shape[0]; ++r) top = std::max(top, part(r, 0));
      for (std::int64_t r = 0; r < parts.shape[0]; ++r) {
        sum += part(r, 1) * std::exp(part(r, 0) - top);
        logit += part(r, 2);
      }
      loss[at(t)] = top + std::log(sum) - logit;
      for (std::int64_t i = 0; i < v; ++i) {
        const float one = i + first == target ? 1 : 0;
        d[at(t * v + i)] = static_cast<float>(scale) * (std::exp(x[at(t * v + i)] - top) / sum - one);
      }
    }
    write(loss, losses);
    if (dlogits) write(d, dlogits);
  }

  void adamw(const AdamwArguments& a, const Tensor& gradient, const Tensor& master, const Tensor& m, const Tensor& v,
             const Tensor& weight) override {
    const auto g = read(gradient);
    const OwnedTensor joined(DType::f32, weight ? master.shape : Shape{0});
    if (weight) join_masters(weight, master, joined);
    const Tensor whole = weight ? joined.view() : master;
    auto p = read(whole), first = read(m), second = read(v);
    const auto b1 = static_cast<float>(a.beta1), b2 = static_cast<float>(a.beta2), step = static_cast<float>(a.step);
    for (std::size_t i = 0; i < p.size(); ++i) {
      const float value = static_cast<float>(a.gradient_scale) * g[i];
      first[i] = b1 * first[i] + (1 - b1) * value;
      second[i] = b2 * second[i] + (1 - b2) * value * value;
      const float m_hat = first[i] / (1 - std::pow(b1, step)), v_hat = second[i] / (1 - std::pow(b2, step));
      p[i] -= static_cast<float>(a.learning_rate) *
              (m_hat / (std::sqrt(v_hat) + static_cast<float>(a.epsilon)) + static_cast<float>(a.weight_decay) * p[i]);
    }
    write(p, whole);
    write(first, m);
    write(second, v);
    if (weight) split_masters(whole, weight, master);
  }
};

}  // namespace dropcycle
