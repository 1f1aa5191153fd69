#include <algorithm>
#include <cmath>

#include "reference_ops.hpp"
#include "values.hpp"

namespace dropcycle {
namespace {

using reference::read;
using reference::read_indices;
using reference::write;

// Index arithmetic of qkv rows [Nq query heads | Nkv key heads | Nkv value heads], D elements each.
struct Rows {
  explicit Rows(const AttentionShape& s)
      : sequence(static_cast<std::size_t>(s.sequence)),
        heads(static_cast<std::size_t>(s.heads)),
        kv_heads(static_cast<std::size_t>(s.kv_heads)),
        head_size(static_cast<std::size_t>(s.head_size)),
        width(static_cast<std::size_t>(s.qkv_width())),
        scale(1 / std::sqrt(static_cast<double>(s.head_size))) {
    require(s.heads % s.kv_heads == 0, "{} query heads on {} key/value heads", s.heads, s.kv_heads);
  }
  std::size_t sequence, heads, kv_heads, head_size, width;
  double scale;

  std::size_t query(std::size_t token, std::size_t head) const { return token * width + head * head_size; }
  std::size_t key(std::size_t token, std::size_t head) const {
    return token * width + (heads + head / (heads / kv_heads)) * head_size;
  }
  std::size_t value(std::size_t token, std::size_t head) const { return key(token, head) + kv_heads * head_size; }
};

double dot(const double* a, const double* b, std::size_t size) {
  double sum = 0;
  for (std::size_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

void ReferenceOps::rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies,
                        std::int64_t head_size, std::int64_t rotated_heads, int direction) {
  auto values = read(x);
  const auto places = read_indices(positions);
  const auto frequencies = read(inverse_frequencies);
  const auto width = static_cast<std::size_t>(x.shape[1]), size = static_cast<std::size_t>(head_size), half = size / 2;
  for (std::size_t t = 0; t < places.size(); ++t) {
    for (std::size_t head = 0; head < static_cast<std::size_t>(rotated_heads); ++head) {
      double* row = &values[t * width + head * size];
      for (std::size_t i = 0; i < half; ++i) {
        const double angle = places[t] * frequencies[i];
        const double c = std::cos(angle), s = direction * std::sin(angle), a = row[i], b = row[i + half];
        row[i] = a * c - b * s;
        row[i + half] = b * c + a * s;
      }
    }
  }
  write(values, x);
}

void ReferenceOps::attention(const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key, const Tensor& out,
                             const Tensor& lse) {
  const Rows r(shape);
  const auto x = read(qkv);
  const auto first = read_indices(first_key);
  const auto tokens = static_cast<std::size_t>(shape.tokens());
  std::vector<double> y(tokens * r.heads * r.head_size), sums(tokens * r.heads), p(r.sequence);
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t begin = t / r.sequence * r.sequence,
                      from = begin + (first.empty() ? 0 : static_cast<std::size_t>(first[t]));
    for (std::size_t h = 0; h < r.heads; ++h) {
      double top = -INFINITY, sum = 0;
      for (std::size_t s = from; s <= t; ++s) {
        p[s - begin] = r.scale * dot(&x[r.query(t, h)], &x[r.key(s, h)], r.head_size);
        top = std::max(top, p[s - begin]);
      }
      for (std::size_t s = from; s <= t; ++s) sum += std::exp(p[s - begin] - top);
      sums[t * r.heads + h] = top + std::log(sum);
      double* row = &y[(t * r.heads + h) * r.head_size];
      for (std::size_t s = from; s <= t; ++s) {
        const double weight = std::exp(p[s - begin] - top) / sum;
        for (std::size_t i = 0; i < r.head_size; ++i) row[i] += weight * x[r.value(s, h) + i];
      }
    }
  }
  write(y, out);
  write(sums, lse);
}

void ReferenceOps::attention_backward(const AttentionShape& shape, const Tensor& qkv, const Tensor& first_key,
                                      const Tensor& out, const Tensor& lse, const Tensor& dout, const Tensor& dqkv) {
  const Rows r(shape);
  const auto x = read(qkv), y = read(out), sums = read(lse), dy = read(dout);
  const auto first = read_indices(first_key);
  std::vector<double> dx(x.size());
  for (std::size_t t = 0; t < static_cast<std::size_t>(shape.tokens()); ++t) {
    const std::size_t from = t / r.sequence * r.sequence + (first.empty() ? 0 : static_cast<std::size_t>(first[t]));
    for (std::size_t h = 0; h < r.heads; ++h) {
      const std::size_t row = (t * r.heads + h) * r.head_size, q = r.query(t, h);
      const double mean = dot(&dy[row], &y[row], r.head_size);  // Σ_s p_s dp_s
      for (std::size_t s = from; s <= t; ++s) {
        const std::size_t k = r.key(s, h), v = r.value(s, h);
        const double p = std::exp(r.scale * dot(&x[q], &x[k], r.head_size) - sums[t * r.heads + h]);
        const double dscore = r.scale * p * (dot(&dy[row], &x[v], r.head_size) - mean);
        for (std::size_t i = 0; i < r.head_size; ++i) {
          dx[v + i] += p * dy[row + i];
          dx[q + i] += dscore * x[k + i];
          dx[k + i] += dscore * x[q + i];
        }
      }
    }
  }
  write(dx, dqkv);
}

void ReferenceOps::attention_cached(const AttentionShape& shape, const Tensor& qkv, const Tensor& keys,
                                    const Tensor& values, std::int64_t past, const Tensor& out) {
  const Rows r(shape);
  const auto x = read(qkv), k = read(keys), v = read(values);
  const std::size_t row_size = r.kv_heads * r.head_size, news = x.size() / r.width;
  std::vector<double> y(news * r.heads * r.head_size);
  for (std::size_t t = 0; t < news; ++t) {
    for (std::size_t h = 0; h < r.heads; ++h) {
      const std::size_t kv = h / (r.heads / r.kv_heads) * r.head_size;
      std::vector<double> p(static_cast<std::size_t>(past) + t + 1);
      for (std::size_t s = 0; s < p.size(); ++s) {
        p[s] = r.scale * dot(&x[r.query(t, h)], &k[s * row_size + kv], r.head_size);
      }
      const double top = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& value : p) sum += value = std::exp(value - top);
      for (std::size_t s = 0; s < p.size(); ++s) {
        for (std::size_t i = 0; i < r.head_size; ++i) {
          y[(t * r.heads + h) * r.head_size + i] += p[s] / sum * v[s * row_size + kv + i];
        }
      }
    }
  }
  write(y, out);
}

}  // namespace dropcycle
