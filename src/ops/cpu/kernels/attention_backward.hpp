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
  Element *keys, *values, *transposed_keys;        // left operands
  Element *query_columns, *dout_columns;           // right operands, k = d
  Element *query_rows, *dout_rows;                 // right operands, k = queries
  Element *probabilities, *dscores, *dscore_rows;  // [kBlock, kBlock]; the last a right operand
  float *scores, *dprobabilities;                  // [kBlock, kBlock]
  float* dquery_transposed;                        // [query block][d, kBlock]
  float *dkey, *dvalue;                            // [keys, d_columns]
  float *lse, *delta;                              // [queries]
  std::int32_t *first_key, *last_key;              // [queries]
  BackwardScratch(Pieces& pieces, const Padded& p)
      : keys(pieces.take<Element>(p.keys * p.d)),
        values(pieces.take<Element>(p.keys * p.d)),
        transposed_keys(pieces.take<Element>(p.keys * p.d)),
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
        delta(pieces.take<float>(p.queries)),
        first_key(pieces.take<std::int32_t>(p.queries)),
        last_key(pieces.take<std::int32_t>(p.queries)) {}
};

// A key counts for the queries whose range of keys holds it.
inline Vector excluded(Vector p, std::int32_t key, const std::int32_t* first, const std::int32_t* last) {
  IntVector from, to;
  __builtin_memcpy(&from, first, sizeof(from));
  __builtin_memcpy(&to, last, sizeof(to));
  return (from <= key) & (to >= key) ? p : Vector{};
}

// Probabilities and dscores of a block, in the layouts that the products want.
template <class Dot>
void score_gradients(const BackwardScratch<Dot>& s, float scale, std::int64_t key, std::int64_t query, bool masked) {
  constexpr std::int64_t kPair = Dot::kPair;
  for (std::int64_t j = 0; j < kBlock; j += kPair) {
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < kBlock; i += kLanes) {
      const Vector lse = load_vector(s.lse + query + i), delta = load_vector(s.delta + query + i);
      Vector dscores[kPair];
#pragma GCC unroll 2
      for (std::int64_t r = 0; r < kPair; ++r) {
        const std::int64_t at = (j + r) * kBlock + i;
        Vector p = Dot::exp(load_vector(s.scores + at) * scale - lse);
        if (masked) {
          p = excluded(p, static_cast<std::int32_t>(key + j + r), s.first_key + query + i, s.last_key + query + i);
        }
        dscores[r] = p * (load_vector(s.dprobabilities + at) - delta) * scale;
        Dot::store(s.probabilities + at, p);
        Dot::store(s.dscores + at, dscores[r]);
      }
      Dot::store_pairs(s.dscore_rows + i / kPanel * kPanel * kBlock + j * kPanel + i % kPanel * kPair, dscores);
    }
  }
}

template <class Dot>
void backward_block(const AttentionArguments& a, const Padded& p, const BackwardScratch<Dot>& s, std::int64_t key,
                    std::int64_t query, bool masked) {
  constexpr std::int64_t kPair = Dot::kPair;
  multiply<Dot>({s.keys + key * p.d, p.d, kPair}, s.query_columns + query * p.d, p.d, s.scores, kBlock, kBlock, kBlock,
                false);
  multiply<Dot>({s.values + key * p.d, p.d, kPair}, s.dout_columns + query * p.d, p.d, s.dprobabilities, kBlock, kBlock,
                kBlock, false);
  score_gradients(s, a.scale, key, query, masked);
  multiply<Dot>({s.probabilities, kBlock, kPair}, s.dout_rows + query * p.d_columns, kBlock,
                s.dvalue + key * p.d_columns, p.d_columns, kBlock, p.d_columns, true);
  multiply<Dot>({s.dscores, kBlock, kPair}, s.query_rows + query * p.d_columns, kBlock, s.dkey + key * p.d_columns,
                p.d_columns, kBlock, p.d_columns, true);
  const auto* keys = s.transposed_keys + key * p.d;
  const Left<Dot> left = Dot::kTiles ? Left<Dot>{keys, kBlock, kPair} : Left<Dot>{keys, kPair, p.d * kPair};
  multiply<Dot>(left, s.dscore_rows, kBlock, s.dquery_transposed + query * p.d, kBlock, p.d, kBlock, true);
}

// Loads one query head: operands and statistics. Padding queries get lse = 1e30, so that they have no probability.
template <class Dot, class T>
void load_queries(const AttentionArguments& a, const Padded& p, const BackwardScratch<Dot>& s, std::int64_t sequence,
                  std::int64_t head) {
  const std::int64_t d = a.head_size, row = sequence * a.queries;
  const KeyRanges see(a, sequence, 0, a.queries);
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
    s.first_key[i] = i < a.queries ? static_cast<std::int32_t>(see.first(i)) : 0;
    s.last_key[i] = i < a.queries ? static_cast<std::int32_t>(see.last(i)) : 0;
  }
  for (std::int64_t i = 0; i < p.queries * p.d; ++i) s.dquery_transposed[i] = 0;
}

// dq rows from their transposed sums [query block][d_padded, kBlock].
template <class T>
void store_dquery(const float* transposed, std::int64_t d_padded, std::int64_t queries, std::int64_t d, T* dq,
                  std::int64_t stride) {
  for (std::int64_t query = 0; query < queries; query += kLanes) {
    const float* block = transposed + query / kBlock * kBlock * d_padded + query % kBlock;
    for (std::int64_t first = 0; first < d; first += kLanes) {
      IntVector square[kLanes] = {};
      for (std::int64_t i = 0; i < smaller(kLanes, d - first); ++i) {
        square[i] = reinterpret_cast<IntVector>(load_vector(block + (first + i) * kBlock));
      }
      transpose(square);
      for (std::int64_t i = 0; i < smaller(kLanes, queries - query); ++i) {
        float row[kLanes];
        __builtin_memcpy(row, &square[i], sizeof(row));
        T* to = dq + (query + i) * stride + first;
        for (std::int64_t c = 0; c < smaller(kLanes, d - first); ++c) store(to[c], row[c]);
      }
    }
  }
}

template <class Dot, class T>
void backward_head(const AttentionArguments& a, const Padded& p, const BackwardScratch<Dot>& s, std::int64_t sequence,
                   std::int64_t kv_head) {
  const std::int64_t d = a.head_size;
  const std::int64_t group = a.heads / a.kv_heads;
  const auto* k = static_cast<const T*>(a.k) + sequence * a.keys * a.k_stride + kv_head * d;
  const auto* v = static_cast<const T*>(a.v) + sequence * a.keys * a.v_stride + kv_head * d;
  copy_rows<Dot>(k, a.k_stride, a.keys, p.keys, d, p.d, s.keys);
  copy_rows<Dot>(v, a.v_stride, a.keys, p.keys, d, p.d, s.values);
  if constexpr (Dot::kTiles) {
    transpose_rows<Dot>(k, a.k_stride, a.keys, p.keys, d, p.d, s.transposed_keys);
  } else {
    pair_rows<Dot>(k, a.k_stride, a.keys, p.keys, d, p.d, s.transposed_keys);
  }
  for (std::int64_t i = 0; i < p.keys * p.d_columns; ++i) s.dkey[i] = s.dvalue[i] = 0;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    load_queries<Dot, T>(a, p, s, sequence, head);
    for (std::int64_t query = 0; query < a.queries; query += kBlock) {
      const KeyRanges see(a, sequence, query, smaller(kBlock, a.queries - query));
      for (std::int64_t key = see.lowest_first / kBlock * kBlock; key <= see.highest_last; key += kBlock) {
        backward_block<Dot>(a, p, s, key, query, key + kBlock - 1 > see.lowest_last || key < see.highest_first);
      }
    }
    store_dquery<T>(s.dquery_transposed, p.d, a.queries, d,
                    static_cast<T*>(a.dq) + sequence * a.queries * a.dq_stride + head * d, a.dq_stride);
  }
  const auto store_dkv = [&]<class K>(K) {
    auto* dk = static_cast<K*>(a.dk) + sequence * a.keys * a.dk_stride + kv_head * d;
    auto* dv = static_cast<K*>(a.dv) + sequence * a.keys * a.dv_stride + kv_head * d;
    for (std::int64_t i = 0; i < a.keys; ++i) {
#pragma omp simd
      for (std::int64_t c = 0; c < d; ++c) {
        store(dk[i * a.dk_stride + c], s.dkey[i * p.d_columns + c]);
        store(dv[i * a.dv_stride + c], s.dvalue[i * p.d_columns + c]);
      }
    }
  };
  with_type(a.dkv_type, store_dkv);
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
    [[maybe_unused]] const typename Dot::Region region{};
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t pair = 0; pair < a.batch * a.kv_heads; ++pair) {
      backward_head<Dot, T>(a, p, scratch, pair / a.kv_heads, pair % a.kv_heads);
    }
  }
}

}  // namespace dropcycle::cpu::DROPCYCLE_ISA
