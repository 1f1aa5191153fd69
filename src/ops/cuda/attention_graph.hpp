// Attention as graphs of operations, as data: what cuDNN is asked to compute, and what an interpreter on the CPU
// computes to show that it is attention. The shapes of the graphs are those for which cuDNN has flash kernels, in which
// the virtual tensors never exist in memory.
//
// With s = scale q kᵀ, seen(i, j) = j <= i and, with document masks, j >= first_key[i]:
//   forward    m = max_j s;  z = Σ_j exp(s - m);  lse = m + log z;  out = (exp(s - m) / z) v
//   backward   δ = Σ_d dout out;  p = exp(s - lse);  dv = pᵀ dout;  ds = scale p (dout vᵀ - δ);  dq = ds k;  dk = dsᵀ q
// where s is -infinity unless seen. Sums over the query heads of a key/value head give dk and dv. (Dao et al., 2022:
// FlashAttention; cuDNN's developer guide, "Fused attention".)
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "dropcycle/ops/ops.hpp"

namespace dropcycle::cuda {

enum class GraphType { bf16, f32, i32, boolean };

enum class GraphMode {
  matmul,         // y = a b over the last two dims; a head of y reads head h / (heads of y / heads of b) of b
  multiply,       // pointwise, sizes of 1 spread out: y = a b
  add,            // y = a + b
  subtract,       // y = a - b
  divide,         // y = a / b
  exp,            // y = exp(a)
  log,            // y = log(a)
  identity,       // y = a, converted to the type of y
  index,          // y = the place along `axis`; a gives the sizes only
  greater_equal,  // y = a >= b
  select,         // y = c ? a : b
  reduce_max,     // y = max of a over the dims where y has fewer places, each place of y taking equally many of a
  reduce_sum,     // y = the sum over them
  relabel,        // y = the same memory as a, with other sizes and strides
};

// Four dims [B, heads, rows, columns].
using GraphSizes = std::array<std::int64_t, 4>;

struct GraphTensor {
  std::int64_t id = 0;  // its place in Graph::tensors, and cuDNN's unique id
  GraphType type = GraphType::f32;
  GraphSizes sizes{}, strides{};
  bool is_virtual = true;    // never in memory
  bool is_by_value = false;  // a number of the host, f32
};

struct GraphOperation {
  GraphMode mode;
  std::vector<std::int64_t> inputs;  // a, b, c: ids of tensors
  std::int64_t output = 0;
  int axis = -1;
  bool deterministic = false;  // sums in a fixed order
};

struct Graph {
  std::vector<GraphTensor> tensors;
  std::vector<GraphOperation> operations;
};

// The strides, in numbers, of sequences, heads and rows (tokens) of a matrix [T, width].
struct HeadStrides {
  std::int64_t sequence = 0, head = 0, row = 0;
  bool operator==(const HeadStrides&) const = default;
};

struct AttentionGraphOptions {
  AttentionShape shape;  // keys as many as queries
  HeadStrides q, k, v, out, lse;
  HeadStrides dq, dk, dv, dout;  // backward
  bool documents = false;        // first_key is given
  bool deterministic = false;    // backward adds in a fixed order
};

// Ids of the tensors that the caller gives memory or numbers for; -1: not in the graph.
struct AttentionGraph {
  Graph graph;
  std::int64_t q = -1, k = -1, v = -1, out = -1;
  std::int64_t lse = -1;                           // f32 [B, Nq, S, 1]
  std::int64_t first_key = -1;                     // i32 [B, 1, S, 1]
  std::int64_t scale = -1, lowest = -1, one = -1;  // by value: 1/sqrt(D), kLowestScore, 1
  std::int64_t dq = -1, dk = -1, dv = -1, dout = -1;
  std::int64_t delta = -1;   // scratch, f32 [B, Nq, S, 1], contiguous
  std::int64_t dq_sum = -1;  // scratch, f32 [B, Nq, S, D], contiguous, zeroed by the caller; not if deterministic
};

// What a key that isn't seen scores. Finite: where the first block of keys is hidden from a query, the flash recurrence
// takes the difference of two of them, which must be 0 and not NaN, also after a factor of log2(e).
inline constexpr float kLowestScore = -1e30F;

AttentionGraph attention_forward_graph(const AttentionGraphOptions& options);
AttentionGraph attention_backward_graph(const AttentionGraphOptions& options);

}  // namespace dropcycle::cuda
