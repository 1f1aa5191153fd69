// Backward attention. One thread takes a key/value head of a sequence with the query heads that read it; sums over
// queries run in their order, so bits do not depend on the number of threads. See attention.hpp.
//
// Everything is computed transposed, with keys as rows and queries as columns, so that the statistics of the queries
// lie along vectors and the probabilities need no transposition as left operands:
//   Pᵀ = exp(scale K Qᵀ - lse);  dPᵀ = V dOᵀ;  dSᵀ = scale Pᵀ (dPᵀ - delta), delta = Σ_d dO O
//   dV += Pᵀ dO;  dK += dSᵀ Q;  dQᵀ += Kᵀ dSᵀ
#pragma once

#include "attention.hpp"

namespace dropcycle::cpu::DROPCYCLE_ISA {

template <class Dot>
struct BackwardScratch {
  using Element = typename Dot::Element;
  Element *keys, *values, *keys_transposed;        // left operands
  Element *query_columns, *dout_columns;           // right operands, k = d
  Element *query_rows, *dout_rows;                 // right operands, k = queries
  Element *probabilities, *dscores, *dscore_rows;  // [kBlock, kBlock]; the last a right operand
  float *scores, *dprobabilities;                  // [kBlock, kBlock]
  float* dquery_transposed;                        // [d, queries]
  float *dkey, *dvalue;                            // [keys, d_columns]
  float *lse, *delta;                              // [queries]
  BackwardScratch(Pieces& pieces, const Padded& p)
      : keys(pieces.take<Element>(p.keys * p.d)),
        values(pieces.take<Element>(p.keys * p.d)),
        keys_transposed(pieces.take<Element>(p.keys * p.d)),
        query_columns(pieces.take<Element>(p.queries * p.d)),
        dout_columns(pieces.take<Element>(p.queries * p.d)),
        query_rows(pieces.take<Element>(p.queries * p.d_columns)),
        dout_rows(pieces.take<Element>(p.queries * p.d_columns)),
        probabilities(pieces.take<Element>(kBlock * kBlock)),
        dscores(pieces.take<Element>(kBlock * kBlock)),
        dscore_rows(pieces.take<Element>(kBlock * kBlock)),
        scores(pieces.take<float>(kBlock * kBlock)),
        dprobabilities(pieces.take<float>(kBlock * kBlock)),
        dquery_transposed(pieces.take<float>(p.queries * p.d)),
        dkey(pieces.take<float>(p.keys * p.d_columns)),
        dvalue(pieces.take<float>(p.keys * p.d_columns)),
        lse(pieces.take<float>(p.queries)),
        delta(pieces.take<float>(p.queries)) {}
};

// Probabilities and dscores of a block, in the layouts that the products want.
template <class Dot>
void score_gradients(const BackwardScratch<Dot>& s, float scale, const float* lse, const float* delta) {
  constexpr std::int64_t kPair = Dot::kPair;
  for (std::int64_t j = 0; j < kBlock; ++j) {
    const float* scores = s.scores + j * kBlock;
    const float* dprobabilities = s.dprobabilities + j * kBlock;
    auto* probabilities = s.probabilities + j * kBlock;
    auto* dscores = s.dscores + j * kBlock;
#pragma omp simd
    for (std::int64_t i = 0; i < kBlock; ++i) {
      const float p = exp_fast(scores[i] * scale - lse[i]);
      probabilities[i] = Dot::element(p);
      dscores[i] = Dot::element(p * (dprobabilities[i] - delta[i]) * scale);
    }
  }
  for (std::int64_t panel = 0; panel < kBlock; panel += kPanel) {
    for (std::int64_t j = 0; j < kBlock; j += kPair) {
      auto* out = s.dscore_rows + panel * kBlock + j * kPanel;
      const auto* in = s.dscores + j * kBlock + panel;
#pragma omp simd
      for (std::int64_t i = 0; i < kPanel; ++i) {
        for (std::int64_t pair = 0; pair < kPair; ++pair) out[i * kPair + pair] = in[pair * kBlock + i];
      }
    }
  }
}

// Scores that the mask excludes become kExcluded: their probability is 0.
template <class Dot>
void mask_block(const BackwardScratch<Dot>& s, const AttentionArguments& a, const std::int32_t* first_key,
                std::int64_t key, std::int64_t query) {
  constexpr float kExcluded = -1e30F;
  for (std::int64_t i = 0; i < kBlock; ++i) {
    const std::int64_t at = query + i;
    const std::int64_t from = first_key == nullptr || at >= a.queries ? 0 : first_key[at] - key;
    for (std::int64_t j = 0; j < kBlock; ++j) {
      if (j < from || key + j > at) s.scores[j * kBlock + i] = kExcluded;
    }
  }
}

template <class Dot>
void backward_block(const AttentionArguments& a, const Padded& p, const BackwardScratch<Dot>& s,
                    const std::int32_t* first_key, std::int64_t key, std::int64_t query, bool masked) {
  multiply<Dot>(s.keys + key * p.d, p.d, s.query_columns + query * p.d, p.d, s.scores, kBlock, kBlock, kBlock, false);
  multiply<Dot>(s.values + key * p.d, p.d, s.dout_columns + query * p.d, p.d, s.dprobabilities, kBlock, kBlock, kBlock,
                false);
  if (masked) mask_block(s, a, first_key, key, query);
  score_gradients(s, a.scale, s.lse + query, s.delta + query);
  multiply<Dot>(s.probabilities, kBlock, s.dout_rows + query * p.d_columns, kBlock, s.dvalue + key * p.d_columns,
                p.d_columns, kBlock, p.d_columns, true);
  multiply<Dot>(s.dscores, kBlock, s.query_rows + query * p.d_columns, kBlock, s.dkey + key * p.d_columns, p.d_columns,
                kBlock, p.d_columns, true);
  multiply<Dot>(s.keys_transposed + key, p.keys, s.dscore_rows, kBlock, s.dquery_transposed + query, p.queries, p.d,
                kBlock, true);
}

// Loads one query head: operands and statistics. Padding queries get lse = 1e30, so that they have no probability.
template <class Dot, class T>
void load_queries(const AttentionArguments& a, const Padded& p, const BackwardScratch<Dot>& s, std::int64_t row,
                  std::int64_t head) {
  const std::int64_t d = a.head_size;
  const auto* q = static_cast<const T*>(a.q) + row * a.q_stride + head * d;
  const std::int64_t out_stride = a.heads * d;
  const auto* dout = static_cast<const T*>(a.dout) + row * out_stride + head * d;
  const auto* out = static_cast<const T*>(a.out) + row * out_stride + head * d;
  pack_columns<Dot>(q, a.q_stride, a.queries, p.queries, d, p.d, s.query_columns);
  pack_columns<Dot>(dout, out_stride, a.queries, p.queries, d, p.d, s.dout_columns);
  pack_rows<Dot>(q, a.q_stride, a.queries, p.queries, d, p.d_columns, s.query_rows);
  pack_rows<Dot>(dout, out_stride, a.queries, p.queries, d, p.d_columns, s.dout_rows);
  for (std::int64_t i = 0; i < p.queries; ++i) {
    s.lse[i] = i < a.queries ? a.lse[(row + i) * a.heads + head] : 1e30F;
    float sum = 0;
    if (i < a.queries) {
#pragma omp simd reduction(+ : sum)
      for (std::int64_t c = 0; c < d; ++c) sum += load(dout[i * out_stride + c]) * load(out[i * out_stride + c]);
    }
    s.delta[i] = sum;
  }
  for (std::int64_t i = 0; i < p.queries * p.d; ++i) s.dquery_transposed[i] = 0;
}

template <class Dot, class T>
void backward_head(const AttentionArguments& a, const Padded& p, const BackwardScratch<Dot>& s, std::int64_t sequence,
                   std::int64_t kv_head) {
  const std::int64_t d = a.head_size;
  const std::int64_t row = sequence * a.queries;
  const std::int64_t group = a.heads / a.kv_heads;
  const auto* k = static_cast<const T*>(a.k) + row * a.kv_stride + kv_head * d;
  const auto* v = static_cast<const T*>(a.v) + row * a.kv_stride + kv_head * d;
  const std::int32_t* first_key = a.first_key == nullptr ? nullptr : a.first_key + row;
  copy_rows<Dot>(k, a.kv_stride, a.keys, p.keys, d, p.d, s.keys);
  copy_rows<Dot>(v, a.kv_stride, a.keys, p.keys, d, p.d, s.values);
  copy_transposed<Dot>(k, a.kv_stride, a.keys, p.keys, d, p.d, s.keys_transposed);
  for (std::int64_t i = 0; i < p.keys * p.d_columns; ++i) s.dkey[i] = s.dvalue[i] = 0;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    load_queries<Dot, T>(a, p, s, row, head);
    for (std::int64_t query = 0; query < a.queries; query += kBlock) {
      const std::int64_t end = smaller(query + kBlock, a.queries);
      std::int64_t lowest = first_key == nullptr ? 0 : first_key[query];
      std::int64_t highest = lowest;
      for (std::int64_t i = query + 1; first_key != nullptr && i < end; ++i) {
        lowest = smaller(lowest, first_key[i]);
        highest = larger(highest, first_key[i]);
      }
      for (std::int64_t key = lowest / kBlock * kBlock; key < end; key += kBlock) {
        backward_block<Dot>(a, p, s, first_key, key, query, key + kBlock > query + 1 || key < highest);
      }
    }
    auto* dq = static_cast<T*>(a.dq) + row * a.q_stride + head * d;
    for (std::int64_t i = 0; i < a.queries; ++i) {
      for (std::int64_t c = 0; c < d; ++c) store(dq[i * a.q_stride + c], s.dquery_transposed[c * p.queries + i]);
    }
  }
  auto* dk = static_cast<T*>(a.dk) + row * a.kv_stride + kv_head * d;
  auto* dv = static_cast<T*>(a.dv) + row * a.kv_stride + kv_head * d;
  for (std::int64_t i = 0; i < a.keys; ++i) {
#pragma omp simd
    for (std::int64_t c = 0; c < d; ++c) {
      store(dk[i * a.kv_stride + c], s.dkey[i * p.d_columns + c]);
      store(dv[i * a.kv_stride + c], s.dvalue[i * p.d_columns + c]);
    }
  }
}

template <class Dot>
std::int64_t backward_scratch_bytes(const AttentionArguments& a, std::int64_t threads) {
  Pieces pieces(nullptr);
  const BackwardScratch<Dot> scratch(pieces, Padded::of<Dot>(a));
  static_cast<void>(scratch);
  return threads * pieces.bytes();
}

template <class Dot, class T>
void backward(const AttentionArguments& a) {
  const auto p = Padded::of<Dot>(a);
#pragma omp parallel
  {
    Pieces own(a.scratch);
    for (int thread = 0; thread < omp_get_thread_num(); ++thread) BackwardScratch<Dot>(own, p);
    const BackwardScratch<Dot> scratch(own, p);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t pair = 0; pair < a.batch * a.kv_heads; ++pair) {
      backward_head<Dot, T>(a, p, scratch, pair / a.kv_heads, pair % a.kv_heads);
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
