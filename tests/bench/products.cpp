#include "products.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle::bench {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

constexpr std::int64_t kSpreadBytes = 64 << 20;  // twice a usual last-level cache

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Median seconds of run(0), run(1), ...: five at least, and a tenth of a second; two where those are far slower than
// `best` (0: nothing known).
double median_seconds(const std::function<void(std::int64_t)>& run, double best = 0) {
  std::vector<double> seconds;
  run(0);
  const double start = now();
  for (std::int64_t i = 1; seconds.size() < 5 || now() - start < 0.1; ++i) {
    const double before = now();
    run(i);
    seconds.push_back(now() - before);
    if (seconds.size() == 2 && best > 0 && std::min(seconds[0], seconds[1]) > 1.1 * best) break;
  }
  std::ranges::nth_element(seconds, seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2));
  return seconds[seconds.size() / 2];
}

void keep_faster(Time& best, double seconds, std::string way) {
  if (best.way.empty() || seconds < best.seconds) best = {seconds, std::move(way)};
}

memory::desc bf16(std::int64_t rows, std::int64_t columns, Tag tag) {
  return {{rows, columns}, memory::data_type::bf16, tag};
}

// Rows of a larger matrix that is stored column by column.
memory::desc transposed_rows(std::int64_t rows, std::int64_t all_rows, std::int64_t columns) {
  return {{rows, columns}, memory::data_type::bf16, memory::dims{1, all_rows}};
}

// c = a b, with `rows` rows in a and c. Blocks of a lie one after another, or `a_step_bytes` apart in one matrix.
struct Description {
  memory::desc a, b, c;
  std::int64_t rows = 0, a_step_bytes = 0;
};

// Numbers around one in any layout of bf16 or float.
void fill(Buffer& buffer) {
  auto* values = reinterpret_cast<std::uint16_t*>(buffer.data());
  for (std::int64_t i = 0; i < buffer.size_bytes() / 2; ++i) values[i] = static_cast<std::uint16_t>(0x3f00 + i % 251);
}

std::int64_t padded(std::size_t bytes) { return (static_cast<std::int64_t>(bytes) + 63) / 64 * 64; }

Weight tracked(const OwnedTensor& tensor) { return {tensor, next_weight_version()}; }

OwnedTensor filled(DType type, const Shape& shape) {
  OwnedTensor tensor(type, shape);
  RandomStream(1, Purpose::test, "products").fill_normal(tensor.view(), 0, 0, 1);
  return tensor;
}

}  // namespace

struct Products::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::unique_ptr<Ops> ops = make_ops("cpu");
  std::map<std::tuple<bool, std::int64_t, std::int64_t, std::int64_t>, Time> known;

  struct Primitive {
    dnnl::matmul matmul;
    memory::desc a, b, c, scratch;
  };

  Primitive create(const Description& d) {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc made(engine, d.a, d.b, d.c, attributes);
#else
    const dnnl::matmul::primitive_desc made(dnnl::matmul::desc(d.a, d.b, d.c), attributes, engine);
#endif
    return {dnnl::matmul(made), made.src_desc(), made.weights_desc(), made.dst_desc(), made.scratchpad_desc()};
  }

  void execute(const Primitive& p, dnnl::stream& on, std::byte* a, std::byte* b, std::byte* c, std::byte* scratch) {
    p.matmul.execute(on, {{DNNL_ARG_SRC, memory(p.a, engine, a)},
                          {DNNL_ARG_WEIGHTS, memory(p.b, engine, b)},
                          {DNNL_ARG_DST, memory(p.c, engine, c)},
                          {DNNL_ARG_SCRATCHPAD, memory(p.scratch, engine, scratch)}});
    on.wait();
  }

  // Seconds of m rows of c, block by block, by all threads together or a block for each.
  double blocks(const Description& d, std::int64_t m, bool block_per_thread, std::int64_t copies, double best) {
    const int threads = omp_get_max_threads();
    if (block_per_thread) omp_set_num_threads(1);
    const Primitive p = create(d);
    omp_set_num_threads(threads);
    const std::int64_t count = m / d.rows;
    const std::int64_t a_step = d.a_step_bytes > 0 ? d.a_step_bytes : padded(p.a.get_size());
    const std::int64_t a_bytes = (count - 1) * a_step + padded(p.a.get_size()), b_bytes = padded(p.b.get_size()),
                       c_bytes = padded(p.c.get_size()), scratch_bytes = padded(p.scratch.get_size());
    copies = std::clamp(kSpreadBytes / (a_bytes + b_bytes + count * c_bytes), std::int64_t{1}, copies);
    Buffer a(copies * a_bytes), b(copies * b_bytes), c(copies * count * c_bytes), s(threads * scratch_bytes);
    fill(a), fill(b);
    return median_seconds(
        [&](std::int64_t i) {
          const std::int64_t copy = i % copies;
          std::byte* const from = a.data() + copy * a_bytes;
          std::byte* const weight = b.data() + copy * b_bytes;
          std::byte* const to = c.data() + copy * count * c_bytes;
          if (!block_per_thread) {
            for (std::int64_t j = 0; j < count; ++j) {
              execute(p, stream, from + j * a_step, weight, to + j * c_bytes, s.data());
            }
            return;
          }
#pragma omp parallel
          {
            dnnl::stream own(engine);
            std::byte* const scratch = s.data() + omp_get_thread_num() * scratch_bytes;
#pragma omp for schedule(static)
            for (std::int64_t j = 0; j < count; ++j) {
              execute(p, own, from + j * a_step, weight, to + j * c_bytes, scratch);
            }
          }
        },
        best);
  }

  // The fastest way over layouts of b, sizes of blocks and threads.
  void search(Time& best, std::int64_t m, std::int64_t copies, const std::string& way,
              const std::function<Description(std::int64_t rows, Tag b)>& describe) {
    for (const auto& [tag, layout] : {std::pair{Tag::ab, "row-major"}, std::pair{Tag::any, "packed"}}) {
      for (const std::int64_t rows : {m, std::int64_t{1024}, std::int64_t{256}, std::int64_t{64}}) {
        if (rows > m || m % rows != 0) continue;
        for (const bool per_thread : {false, true}) {
          if (rows == m ? per_thread : !per_thread && rows < 256) continue;
          const double seconds = blocks(describe(rows, tag), m, per_thread, copies, best.seconds);
          keep_faster(best, seconds,
                      fmt::format("oneDNN, {}b {}, {}", way, layout,
                                  rows == m    ? std::string("whole")
                                  : per_thread ? fmt::format("{} rows a thread", rows)
                                               : fmt::format("{} rows", rows)));
        }
      }
    }
  }

  // Seconds of `heads` heads by oneDNN, a head for each thread: every panel of `panel` rows.
  double panels(std::int64_t heads, const std::vector<Description>& each, double best) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    std::vector<Primitive> primitives;
    for (const Description& d : each) primitives.push_back(create(d));
    omp_set_num_threads(threads);
    std::int64_t a = 0, b = 0, c = 0, s = 0;
    for (const Primitive& p : primitives) {
      a = std::max(a, padded(p.a.get_size()));
      b = std::max(b, padded(p.b.get_size()));
      c = std::max(c, padded(p.c.get_size()));
      s = std::max(s, padded(p.scratch.get_size()));
    }
    const std::int64_t bytes = a + b + c + s;
    Buffer memory(threads * bytes);
    fill(memory);
    return median_seconds(
        [&](std::int64_t) {
#pragma omp parallel
          {
            dnnl::stream own(engine);
            std::byte* const at = memory.data() + omp_get_thread_num() * bytes;
#pragma omp for schedule(static)
            for (std::int64_t head = 0; head < heads; ++head) {
              for (const Primitive& p : primitives) execute(p, own, at, at + a, at + a + b, at + a + b + c);
            }
          }
        },
        best);
  }
};

Products::Products() : state_(std::make_unique<State>()) {}

Products::~Products() = default;

Time Products::forward(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t copies) {
  Time& best = state_->known[{false, m, n, k}];
  if (best.seconds > 0) return best;
  state_->search(best, m, copies, "", [&](std::int64_t rows, Tag b) {
    return Description{bf16(rows, k, Tag::ab), bf16(k, n, b), bf16(rows, n, Tag::ab), rows};
  });
  const auto x = filled(DType::bf16, {m, k}), w = filled(DType::bf16, {n, k}), y = filled(DType::bf16, {m, n});
  const Weight weight = tracked(w);
  keep_faster(best, median_seconds([&](std::int64_t) { state_->ops->linear(x, weight, y); }), "Dropcycle");
  return best;
}

Time Products::gradient(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t copies) {
  Time& best = state_->known[{true, m, n, k}];
  if (best.seconds > 0) return best;
  for (const auto& [rows_of_dw, columns_of_dw] : {std::pair{n, k}, std::pair{k, n}}) {
    for (const bool contiguous : {false, true}) {
      const std::string way = fmt::format("{}{}, ", rows_of_dw == n ? "dw" : "dwᵀ", contiguous ? ", a transposed" : "");
      state_->search(best, rows_of_dw, copies, way, [&](std::int64_t rows, Tag b) {
        return Description{contiguous ? bf16(rows, m, Tag::ab) : transposed_rows(rows, rows_of_dw, m),
                           bf16(m, columns_of_dw, b),
                           {{rows, columns_of_dw}, memory::data_type::f32, Tag::ab},
                           rows,
                           contiguous ? 0 : rows * 2};
      });
    }
    if (n == k) break;
  }
  const auto dy = filled(DType::bf16, {m, n}), x = filled(DType::bf16, {m, k});
  const OwnedTensor dw(DType::f32, {n, k});
  keep_faster(best, median_seconds([&](std::int64_t) { state_->ops->linear_dw(dy, x, dw); }), "Dropcycle");
  return best;
}

Products::Attention Products::attention(std::int64_t batch, std::int64_t heads, std::int64_t sequence,
                                        std::int64_t head_size) {
  Time scores, sums;  // panel [rows, D] kᵀ [D, seen], and panel [rows, seen] v [seen, D]
  for (const std::int64_t rows : {32, 64, 128, 256, 512}) {
    if (sequence % rows != 0) continue;
    for (const auto& [tag, layout] : {std::pair{Tag::ab, "row-major"}, std::pair{Tag::any, "packed"}}) {
      std::vector<Description> q, p;
      for (std::int64_t seen = rows; seen <= sequence; seen += rows) {
        q.push_back({bf16(rows, head_size, Tag::ab),
                     bf16(head_size, seen, tag),
                     {{rows, seen}, memory::data_type::f32, Tag::ab},
                     rows});
        p.push_back({bf16(rows, seen, Tag::ab), bf16(seen, head_size, tag), bf16(rows, head_size, Tag::ab), rows});
      }
      const std::string way = fmt::format("oneDNN, {} queries, b {}", rows, layout);
      keep_faster(scores, state_->panels(batch * heads, q, scores.seconds), way);
      keep_faster(sums, state_->panels(batch * heads, p, sums.seconds), way);
    }
  }
  Attention result{{scores.seconds + sums.seconds, scores.way + "; " + sums.way},
                   {2 * scores.seconds + 3 * sums.seconds, scores.way + "; " + sums.way}};
  const AttentionShape s{batch, sequence, heads, heads, head_size};
  const auto qkv = filled(DType::bf16, {s.tokens(), s.qkv_width()}), dqkv = filled(DType::bf16, qkv.view().shape),
             out = filled(DType::bf16, {s.tokens(), heads * head_size}), dout = filled(DType::bf16, out.view().shape),
             lse = filled(DType::f32, {s.tokens(), heads});
  const AttentionHeads x = packed_heads(s, qkv), dx = packed_heads(s, dqkv);
  result.own_forward = median_seconds([&](std::int64_t) { state_->ops->attention(s, x, {}, out, lse); });
  result.own_backward =
      median_seconds([&](std::int64_t) { state_->ops->attention_backward(s, x, {}, out, lse, dout, dx); });
  keep_faster(result.forward, result.own_forward, "Dropcycle");
  keep_faster(result.backward, result.own_backward, "Dropcycle");
  return result;
}

}  // namespace dropcycle::bench
