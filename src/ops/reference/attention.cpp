#include <algorithm>
#include <cmath>

#include "reference_ops.hpp"
#include "values.hpp"

namespace dropcycle {
namespace {

using reference::read;
using reference::read_indices;
using reference::write;

// Index arithmetic: where a head of a row begins in its matrix.
struct Rows {
  Rows(const AttentionShape& s, const AttentionHeads& x)
      : sequence(static_cast<std::size_t>(s.sequence)),
        keys(static_cast<std::size_t>(s.key_count())),
        heads(static_cast<std::size_t>(s.heads)),
        kv_heads(static_cast<std::size_t>(s.kv_heads)),
        head_size(static_cast<std::size_t>(s.head_size)),
        scale(1 / std::sqrt(static_cast<double>(s.head_size))),
        x_(x) {
    require(s.heads % s.kv_heads == 0, "{} query heads on {} key/value heads", s.heads, s.kv_heads);
  }
  std::size_t sequence, keys, heads, kv_heads, head_size;
  double scale;

  std::size_t query(std::size_t token, std::size_t head) const { return at(x_.q, token, head); }
  // `row` counts the keys of all sequences.
  std::size_t key(std::size_t row, std::size_t head) const { return at(x_.k, row, head / (heads / kv_heads)); }
  std::size_t value(std::size_t row, std::size_t head) const { return at(x_.v, row, head / (heads / kv_heads)); }

 private:
  std::size_t at(const Columns& columns, std::size_t row, std::size_t head) const {
    return row * static_cast<std::size_t>(columns.matrix.shape[1]) + static_cast<std::size_t>(columns.first) +
           head * head_size;
  }
  const AttentionHeads& x_;
};

// The key rows [from, to] that each query sees.
struct Seen {
  Seen(const Rows& r, std::size_t tokens, const AttentionMask& mask) {
    const auto first = read_indices(mask.first_key), last = read_indices(mask.last_key);
    for (std::size_t t = 0; t < tokens; ++t) {
      const std::size_t begin = t / r.sequence * r.keys;
      from.push_back(begin + (first.empty() ? 0 : static_cast<std::size_t>(first[t])));
      to.push_back(begin + (last.empty() ? r.keys - r.sequence + t % r.sequence : static_cast<std::size_t>(last[t])));
    }
  }
  std::vector<std::size_t> from, to;
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

void ReferenceOps::attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                             const Tensor& out, const Tensor& lse) {
  const Rows r(shape, x);
  const auto q = read(x.q.matrix), k = read(x.k.matrix), v = read(x.v.matrix);
  const auto tokens = static_cast<std::size_t>(shape.tokens());
  const Seen seen(r, tokens, mask);
  std::vector<double> y(tokens * r.heads * r.head_size), sums(tokens * r.heads), p;
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t from = seen.from[t], to = seen.to[t];
    p.resize(to - from + 1);
    for (std::size_t h = 0; h < r.heads; ++h) {
      double top = -INFINITY, sum = 0;
      for (std::size_t s = from; s <= to; ++s) {
        p[s - from] = r.scale * dot(&q[r.query(t, h)], &k[r.key(s, h)], r.head_size);
        top = std::max(top, p[s - from]);
      }
      for (const double score : p) sum += std::exp(score - top);
      sums[t * r.heads + h] = top + std::log(sum);
      double* row = &y[(t * r.heads + h) * r.head_size];
      for (std::size_t s = from; s <= to; ++s) {
        const double weight = std::exp(p[s - from] - top) / sum;
        for (std::size_t i = 0; i < r.head_size; ++i) row[i] += weight * v[r.value(s, h) + i];
      }
    }
  }
  write(y, out);
  if (lse) write(sums, lse);
}

void ReferenceOps::attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                                      const Tensor& out, const Tensor& lse, const Tensor& dout,
                                      const AttentionHeads& dx) {
  const Rows r(shape, x);
  const auto q = read(x.q.matrix), k = read(x.k.matrix), v = read(x.v.matrix);
  const auto y = read(out), sums = read(lse), dy = read(dout);
  const auto tokens = static_cast<std::size_t>(shape.tokens());
  const std::size_t size = r.head_size, kv_width = r.kv_heads * size, key_rows = tokens / r.sequence * r.keys;
  const Seen seen(r, tokens, mask);
  std::vector<double> dq(tokens * r.heads * size), dk(key_rows * kv_width), dv(key_rows * kv_width);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t h = 0; h < r.heads; ++h) {
      const std::size_t row = (t * r.heads + h) * size, qt = r.query(t, h), kv = h / (r.heads / r.kv_heads) * size;
      const double mean = dot(&dy[row], &y[row], size);  // Σ_s p_s dp_s
      for (std::size_t s = seen.from[t]; s <= seen.to[t]; ++s) {
        const std::size_t ks = r.key(s, h), vs = r.value(s, h);
        const double p = std::exp(r.scale * dot(&q[qt], &k[ks], size) - sums[t * r.heads + h]);
        const double dscore = r.scale * p * (dot(&dy[row], &v[vs], size) - mean);
        for (std::size_t i = 0; i < size; ++i) {
          dv[s * kv_width + kv + i] += p * dy[row + i];
          dq[row + i] += dscore * k[ks + i];
          dk[s * kv_width + kv + i] += dscore * q[qt + i];
        }
      }
    }
  }
  const auto store = [&](std::vector<double>& values, const Columns& columns, std::size_t heads) {
    const Tensor flat(values.data(), Shape{static_cast<std::int64_t>(values.size() / (heads * size)),
                                           static_cast<std::int64_t>(heads * size)});
    copy_columns({flat, 0}, columns, flat.shape[1]);
  };
  store(dq, dx.q, r.heads);
  store(dk, dx.k, r.kv_heads);
  store(dv, dx.v, r.kv_heads);
}

}  // namespace dropcycle
