#include "attention_graph.hpp"

#include <utility>

namespace dropcycle::cuda {
namespace {

using Id = std::int64_t;

GraphSizes contiguous(const GraphSizes& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
}

class Builder {
 public:
  explicit Builder(const AttentionGraphOptions& options) : o_(options), s_(options.shape) {
    require(s_.key_count() == s_.sequence, "an attention graph of {} queries on {} keys", s_.sequence, s_.key_count());
    require(s_.heads % s_.kv_heads == 0, "{} query heads on {} key/value heads", s_.heads, s_.kv_heads);
  }

  AttentionGraph forward() {
    inputs();
    g_.out = heads(o_.out, s_.heads);
    // 1. Scaled scores, -infinity where a key isn't seen.
    const Id s = masked(scaled(g_.k));
    // 2. Softmax and its logarithm of the sum.
    const Id top = apply(GraphMode::reduce_max, {s}, row()), below = apply(GraphMode::subtract, {s, top}, square());
    const Id e = apply(GraphMode::exp, {below}, square()), sum = apply(GraphMode::reduce_sum, {e}, row());
    const Id log = apply(GraphMode::log, {sum}, row());
    apply(GraphMode::add, {top, log}, g_.lse);
    const Id p = apply(GraphMode::divide, {e, sum}, square(GraphType::bf16));
    // 3. Values.
    apply(GraphMode::matmul, {p, g_.v}, g_.out);
    return std::move(g_);
  }

  AttentionGraph backward() {
    inputs();
    turned(g_.v);
    g_.out = heads(o_.out, s_.heads);
    g_.dout = heads(o_.dout, s_.heads);
    g_.dq = heads(o_.dq, s_.heads);
    g_.dk = heads(o_.dk, s_.kv_heads);
    g_.dv = heads(o_.dv, s_.kv_heads);
    g_.one = number();
    // 3. δ = Σ_d dout out.
    g_.delta = add(GraphType::f32, row_sizes(), contiguous(row_sizes()), false);
    const Id product = apply(GraphMode::multiply, {g_.dout, g_.out}, virtual_heads(GraphType::f32));
    apply(GraphMode::multiply, {apply(GraphMode::reduce_sum, {product}, row()), g_.one}, g_.delta);
    // 2. Probabilities again.
    const Id below = apply(GraphMode::subtract, {scaled(g_.k), g_.lse}, square());
    const Id p = apply(GraphMode::exp, {masked(below)}, square());
    // dv = pᵀ dout, summed over the query heads that read a value head.
    per_kv_head(transposed(p), g_.dout, g_.dv);
    // ds = scale p (dout vᵀ - δ).
    const Id dp = apply(GraphMode::matmul, {g_.dout, g_.v}, square());
    const Id centred = apply(GraphMode::subtract, {dp, g_.delta}, square());
    const Id weighted = apply(GraphMode::multiply, {centred, p}, square());
    const Id ds = apply(GraphMode::multiply, {weighted, g_.scale}, square());
    // 1. dq = ds k and dk = dsᵀ q.
    add_dq(ds);
    per_kv_head(transposed(ds), g_.q, g_.dk);
    return std::move(g_);
  }

 private:
  Id add(GraphType type, const GraphSizes& sizes, const GraphSizes& strides, bool is_virtual) {
    const Id id = std::ssize(g_.graph.tensors);
    g_.graph.tensors.push_back({id, type, sizes, strides, is_virtual, false});
    return id;
  }

  // A number of the host.
  Id number() {
    const Id id = add(GraphType::f32, {1, 1, 1, 1}, {1, 1, 1, 1}, false);
    g_.graph.tensors.back().is_by_value = true;
    return id;
  }

  GraphSizes head_sizes(std::int64_t count) const { return {s_.batch, count, s_.sequence, s_.head_size}; }
  GraphSizes square_sizes() const { return {s_.batch, s_.heads, s_.sequence, s_.sequence}; }
  GraphSizes row_sizes() const { return {s_.batch, s_.heads, s_.sequence, 1}; }

  Id heads(const HeadStrides& strides, std::int64_t count) {
    return add(GraphType::bf16, head_sizes(count), {strides.sequence, strides.head, strides.row, 1}, false);
  }
  Id virtual_heads(GraphType type) { return add(type, head_sizes(s_.heads), contiguous(head_sizes(s_.heads)), true); }
  Id square(GraphType type = GraphType::f32) { return add(type, square_sizes(), contiguous(square_sizes()), true); }
  Id row() { return add(GraphType::f32, row_sizes(), contiguous(row_sizes()), true); }

  GraphTensor& tensor(Id id) { return g_.graph.tensors[static_cast<std::size_t>(id)]; }

  // The rows become columns: the tensor is read transposed.
  void turned(Id id) {
    std::swap(tensor(id).sizes[2], tensor(id).sizes[3]);
    std::swap(tensor(id).strides[2], tensor(id).strides[3]);
  }

  Id apply(GraphMode mode, std::vector<Id> inputs, Id output, int axis = -1, bool deterministic = false) {
    g_.graph.operations.push_back({mode, std::move(inputs), output, axis, deterministic});
    return output;
  }

  // What both passes read.
  void inputs() {
    g_.q = heads(o_.q, s_.heads);
    g_.k = heads(o_.k, s_.kv_heads);
    turned(g_.k);
    g_.v = heads(o_.v, s_.kv_heads);
    g_.lse = add(GraphType::f32, row_sizes(), {o_.lse.sequence, o_.lse.head, o_.lse.row, 1}, false);
    g_.scale = number();
    g_.lowest = number();
    if (!o_.documents) return;
    const GraphSizes sizes{s_.batch, 1, s_.sequence, 1};
    g_.first_key = add(GraphType::i32, sizes, contiguous(sizes), false);
  }

  Id scaled(Id k) {
    const Id s = apply(GraphMode::matmul, {g_.q, k}, square());
    return apply(GraphMode::multiply, {s, g_.scale}, square());
  }

  Id masked(Id s) {
    const Id query = apply(GraphMode::index, {s}, square(GraphType::i32), 2);
    const Id key = apply(GraphMode::index, {s}, square(GraphType::i32), 3);
    const Id past = apply(GraphMode::greater_equal, {query, key}, square(GraphType::boolean));
    const Id causal = apply(GraphMode::select, {s, g_.lowest, past}, square());
    if (!o_.documents) return causal;
    // A select of its own: cuDNN's flash engine has no "and" of two comparisons.
    const Id own = apply(GraphMode::greater_equal, {key, g_.first_key}, square(GraphType::boolean));
    return apply(GraphMode::select, {causal, g_.lowest, own}, square());
  }

  Id transposed(Id x) {
    const Id id = square(GraphType::bf16);
    std::swap(tensor(id).strides[2], tensor(id).strides[3]);
    return apply(GraphMode::relabel, {x}, id);
  }

  void per_kv_head(Id weights, Id x, Id sum) {
    const Id of_each = apply(GraphMode::matmul, {weights, x}, virtual_heads(GraphType::bf16));
    apply(GraphMode::reduce_sum, {of_each}, sum, -1, o_.deterministic);
  }

  void add_dq(Id ds) {
    const GraphSizes sizes = head_sizes(s_.kv_heads);
    const Id k = add(GraphType::f32, sizes, {o_.k.sequence, o_.k.head, o_.k.row, 1}, true);
    apply(GraphMode::relabel, {g_.k}, k);
    if (o_.deterministic) {
      apply(GraphMode::matmul, {ds, k}, g_.dq);
      return;
    }
    g_.dq_sum = add(GraphType::f32, head_sizes(s_.heads), contiguous(head_sizes(s_.heads)), false);
    apply(GraphMode::matmul, {ds, k}, g_.dq_sum);
    apply(GraphMode::identity, {g_.dq_sum}, g_.dq);
  }

  const AttentionGraphOptions& o_;
  const AttentionShape& s_;
  AttentionGraph g_;
};

}  // namespace

AttentionGraph attention_forward_graph(const AttentionGraphOptions& options) { return Builder(options).forward(); }
AttentionGraph attention_backward_graph(const AttentionGraphOptions& options) { return Builder(options).backward(); }

}  // namespace dropcycle::cuda
