#include "dropcycle/ops/benchmark.hpp"

#include <emmintrin.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <memory>

#include "dropcycle/device/arena.hpp"

namespace dropcycle {
namespace {

using Call = std::function<void()>;

constexpr std::int64_t kSpreadBytes = 128 << 20;  // what the operands of a call take turns in

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double>& seconds) {
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::ranges::nth_element(seconds, middle);
  return *middle;
}

double seconds_of(const Call& call) {
  const double start = now();
  call();
  return now() - start;
}

struct Medians {
  double call, other;
};
// The calls in turn, each followed by `other`: seven at least, and a twentieth of a second.
Medians median_seconds(const std::vector<Call>& calls, const Call& other) {
  for (const Call& call : calls) call();
  std::vector<double> seconds, others;
  const double start = now();
  for (std::size_t i = 0; seconds.size() < 7 || now() - start < 0.05; ++i) {
    seconds.push_back(seconds_of(calls[i % calls.size()]));
    others.push_back(seconds_of(other));
  }
  return {median(seconds), median(others)};
}

// Moves bytes on all threads, each within blocks of its own that are far larger than the caches: lines of 64 bytes,
// fetched ahead and written past the caches, which is faster than memcpy().
class Mover {
 public:
  explicit Mover(int threads) : threads_(threads), from_(kBlock * threads), to_(kBlock * threads) {
    std::memset(from_.data(), 1, static_cast<std::size_t>(from_.size_bytes()));  // pages of its own
    std::memset(to_.data(), 1, static_cast<std::size_t>(to_.size_bytes()));
  }
  // What is both read and written is copied, the rest read or set.
  void move(std::int64_t reads, std::int64_t writes) {
    const std::int64_t both = std::min(reads, writes) / threads_;
    const std::int64_t read = reads / threads_ - both, set = writes / threads_ - both;
#pragma omp parallel for num_threads(threads_)
    for (int t = 0; t < threads_; ++t) {
      const std::byte* from = from_.data() + t * kBlock;
      std::byte* to = to_.data() + t * kBlock;
      __m128i line[4] = {};
      for (std::int64_t at = place_; at < place_ + both; at += 64) {
        load(from + at % kBlock, line);
        store(to + at % kBlock, line);
      }
      __m128i sums[4] = {};
      for (std::int64_t at = place_ + both; at < place_ + both + read; at += 64) {
        load(from + at % kBlock, line);
        for (int i = 0; i < 4; ++i) sums[i] = _mm_add_epi64(sums[i], line[i]);
      }
      for (std::int64_t at = place_ + both; at < place_ + both + set; at += 64) store(to + at % kBlock, sums);
    }
    place_ = (place_ + both + read + set) / 64 * 64 % kBlock;
  }

 private:
  static constexpr std::int64_t kBlock = 32 << 20, kAhead = 4096;
  static void load(const std::byte* from, __m128i* line) {
    _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T1);
    for (int i = 0; i < 4; ++i) line[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(from) + i);
  }
  static void store(std::byte* to, const __m128i* line) {
    for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, line[i]);
  }

  int threads_;
  std::int64_t place_ = 0;
  Buffer from_, to_;
};

// Tensors of one call, alive as long as a copy of `owner`.
class Operands {
 public:
  explicit Operands(DType compute) : compute_(compute) {}
  Tensor zeros(DType type, const Shape& shape) {
    owner_->emplace_back(type, shape);
    bytes_ += owner_->back().view().bytes();
    return owner_->back();
  }
  // Normal numbers, the first 65,536 over and over.
  Tensor numbers(DType type, const Shape& shape) {
    const Tensor all = zeros(type, shape), flat = all.reshaped({all.elements()});
    const std::int64_t drawn = std::min<std::int64_t>(flat.elements(), 1 << 16);
    RandomStream(1, Purpose::test, "bench").fill_normal(flat.rows(0, drawn), 0, 0, 1);
    for (std::int64_t first = drawn; first < flat.elements(); first += drawn) {
      const Tensor part = flat.rows(first, std::min(drawn, flat.elements() - first));
      std::memcpy(part.data, flat.data, static_cast<std::size_t>(part.bytes()));
    }
    return all;
  }
  Tensor compute(const Shape& shape) { return numbers(compute_, shape); }
  Tensor acc(const Shape& shape) { return numbers(accumulator_of(compute_), shape); }
  // i32: value(i) of element i.
  Tensor indices(const Shape& shape, const std::function<std::int64_t(std::int64_t)>& value) {
    const Tensor all = zeros(DType::i32, shape);
    for (std::int64_t i = 0; i < all.elements(); ++i) all.as<std::int32_t>()[i] = static_cast<std::int32_t>(value(i));
    return all;
  }
  std::int64_t bytes() const { return bytes_; }
  std::shared_ptr<const void> owner() const { return owner_; }

 private:
  DType compute_;
  std::int64_t bytes_ = 0;
  std::shared_ptr<std::vector<OwnedTensor>> owner_ = std::make_shared<std::vector<OwnedTensor>>();
};

// Operations a second of the backend's best product.
double product_rate(Ops& ops, DType compute) {
  double best = 0;
  for (const auto& [rows, in, out] : {std::array<std::int64_t, 3>{4096, 1024, 1024}, {2048, 512, 2048}}) {
    Operands o(compute);
    const Tensor x = o.compute({rows, in}), y = o.compute({rows, out});
    const Weight w{o.compute({out, in}), next_weight_version()};
    for (int run = 0; run < 8; ++run) {
      best = std::max(best, 2.0 * static_cast<double>(rows * in * out) / seconds_of([&] { ops.linear(x, w, y); }));
    }
  }
  return best;
}

class Bench {
 public:
  using Make = std::function<Call(Operands&)>;

  Bench(Ops& ops, DType compute, const Config& config, int threads,
        const std::function<void(const OperationTime&)>& each)
      : ops_(ops),
        product_rate_(product_rate(ops, compute)),
        mover_(threads),
        compute_(compute),
        each_(each),
        c_(config.model),
        batch_(config.train.micro_batch),
        sequence_(config.data.sequence_length),
        tokens_(batch_ * sequence_),
        acc_size_(size_bytes(accumulator_of(compute))),
        size_(size_bytes(compute)) {}

  void run() {
    products();
    attention();
    norms();
    feed_forward();
    if (c_.is_moe()) routing();
    loss();
    flat();
  }

 private:
  void measure(OperationTime time, const Make& make) {
    std::vector<Call> calls;
    for (std::int64_t bytes = 0; calls.empty() || (bytes < kSpreadBytes && calls.size() < 16);) {
      Operands operands(compute_);
      const Call call = make(operands);
      calls.emplace_back([call, owner = operands.owner()] { call(); });
      bytes += operands.bytes();
    }
    const auto reads = static_cast<std::int64_t>(time.reads), writes = static_cast<std::int64_t>(time.writes);
    const Medians medians = median_seconds(calls, [&] { mover_.move(reads, writes); });
    time.seconds = medians.call;
    time.limit_seconds = time.flops > 0 ? time.flops / product_rate_ : medians.other;
    each_(time);
  }
  void product(const std::string& name, const std::string& sizes, double flops, const Make& make) {
    measure({.name = name, .sizes = sizes, .flops = flops}, make);
  }
  void pass(const std::string& name, const std::string& sizes, std::int64_t reads, std::int64_t writes,
            const Make& make) {
    measure({.name = name, .sizes = sizes, .reads = static_cast<double>(reads), .writes = static_cast<double>(writes)},
            make);
  }

  Tensor out(Operands& o, bool acc, const Shape& shape) const { return acc ? o.acc(shape) : o.compute(shape); }

  // y and dx are acc where they meet the residual stream or the loss.
  void linear(const std::string& name, std::int64_t rows, std::int64_t in, std::int64_t outputs, bool y_acc,
              bool dx_acc) {
    const double flops = 2.0 * static_cast<double>(rows * in * outputs);
    const std::string sizes = fmt::format("[{}, {}] [{}, {}]", rows, in, outputs, in);
    const auto weight = [=](Operands& o) { return Weight{o.compute({outputs, in}), next_weight_version()}; };
    product("linear " + name, sizes, flops, [&](Operands& o) -> Call {
      return [this, x = o.compute({rows, in}), w = weight(o), y = out(o, y_acc, {rows, outputs})] {
        ops_.linear(x, w, y);
      };
    });
    product("linear_dx " + name, sizes, flops, [&](Operands& o) -> Call {
      return [this, dy = o.compute({rows, outputs}), w = weight(o), dx = out(o, dx_acc, {rows, in})] {
        ops_.linear_dx(dy, w, dx);
      };
    });
    product("linear_dw " + name, sizes, flops, [&](Operands& o) -> Call {
      return [this, dy = o.compute({rows, outputs}), x = o.compute({rows, in}), dw = o.acc({outputs, in})] {
        ops_.linear_dw(dy, x, dw);
      };
    });
  }

  // Experts with as many rows each as a router that is neither even nor far from it gives.
  std::vector<std::int64_t> expert_offsets() const {
    const std::int64_t rows = tokens_ * c_.experts_per_token;
    std::vector<std::int64_t> offsets{0};
    for (std::int64_t e = 1; e < c_.experts; ++e) offsets.push_back(rows * e / c_.experts + (e * 37 % 23) - 11);
    offsets.push_back(rows);
    for (std::int64_t& offset : offsets) offset = std::clamp<std::int64_t>(offset, 0, rows);
    std::ranges::sort(offsets);
    return offsets;
  }

  void grouped(const std::string& name, std::int64_t in, std::int64_t outputs) {
    const std::vector<std::int64_t> offsets = expert_offsets();
    const std::int64_t rows = offsets.back(), experts = c_.experts;
    const double flops = 2.0 * static_cast<double>(rows * in * outputs);
    const std::string sizes = fmt::format("[{}, {}] {} x [{}, {}]", rows, in, experts, outputs, in);
    const auto weight = [=](Operands& o) { return Weight{o.compute({experts, outputs, in}), next_weight_version()}; };
    product("grouped_linear " + name, sizes, flops, [&](Operands& o) -> Call {
      return [this, offsets, x = o.compute({rows, in}), w = weight(o), y = o.compute({rows, outputs})] {
        ops_.grouped_linear(x, offsets, w, y);
      };
    });
    product("grouped_linear_dx " + name, sizes, flops, [&](Operands& o) -> Call {
      return [this, offsets, dy = o.compute({rows, outputs}), w = weight(o), dx = o.compute({rows, in})] {
        ops_.grouped_linear_dx(dy, offsets, w, dx);
      };
    });
    product("grouped_linear_dw " + name, sizes, flops, [&](Operands& o) -> Call {
      return [this, offsets, dy = o.compute({rows, outputs}), x = o.compute({rows, in}),
              dw = o.acc({experts, outputs, in})] { ops_.grouped_linear_dw(dy, x, offsets, dw); };
    });
  }

  void products() {
    const std::int64_t q = c_.heads * c_.head_size, h = c_.hidden_size, f = c_.intermediate_size;
    linear("qkv", tokens_, h, q + 2 * c_.kv_heads * c_.head_size, false, true);
    linear("attention out", tokens_, q, h, true, false);
    if (c_.is_moe()) {
      grouped("gate and up", h, 2 * f);
      grouped("down", f, h);
    } else {
      linear("gate and up", tokens_, h, 2 * f, false, true);
      linear("down", tokens_, f, h, true, false);
    }
    linear("head", std::min<std::int64_t>(tokens_, 1024), h, c_.vocab_size, true, true);
  }

  void attention() {
    const AttentionShape s{batch_, sequence_, c_.heads, c_.kv_heads, c_.head_size};
    const Shape rows{tokens_, c_.heads * c_.head_size}, packed{tokens_, s.qkv_width()};
    const double half = static_cast<double>(tokens_ * c_.heads * sequence_ * c_.head_size);  // of a product's square
    const std::string sizes =
        fmt::format("B {} S {} Nq {} Nkv {} D {}", batch_, sequence_, c_.heads, c_.kv_heads, c_.head_size);
    product("attention", sizes, 2 * half, [&](Operands& o) -> Call {
      return [this, s, qkv = o.compute(packed), y = o.compute(rows), lse = o.acc({tokens_, c_.heads})] {
        ops_.attention(s, packed_heads(s, qkv), {}, y, lse);
      };
    });
    product("attention_backward", sizes, 5 * half, [&](Operands& o) -> Call {
      const Tensor qkv = o.compute(packed), y = o.compute(rows), lse = o.acc({tokens_, c_.heads});
      ops_.attention(s, packed_heads(s, qkv), {}, y, lse);
      return [this, s, qkv, y, lse, dy = o.compute(rows), dqkv = o.compute(packed)] {
        ops_.attention_backward(s, packed_heads(s, qkv), {}, y, lse, dy, packed_heads(s, dqkv));
      };
    });
    const std::int64_t turned = c_.heads + c_.kv_heads, turned_bytes = tokens_ * turned * c_.head_size * size_;
    pass("rope", to_string(packed), turned_bytes, turned_bytes, [&](Operands& o) -> Call {
      const Tensor frequencies = o.numbers(DType::f64, {c_.head_size / 2});
      const Tensor positions = o.indices({tokens_}, [&](std::int64_t i) { return i % sequence_; });
      return [this, x = o.compute(packed), positions, frequencies, turned] {
        ops_.rope(x, positions, frequencies, c_.head_size, turned, 1);
      };
    });
  }

  void norms() {
    const Shape rows{tokens_, c_.hidden_size};
    const std::int64_t n = rows.elements();
    pass("add_rms_norm", to_string(rows), 2 * n * acc_size_, n * (acc_size_ + size_), [&](Operands& o) -> Call {
      return
          [this, x = o.acc(rows), delta = o.acc(rows), w = o.acc({c_.hidden_size}), sum = o.acc(rows),
           y = o.compute(rows), inverse = o.acc({tokens_})] { ops_.add_rms_norm(x, delta, w, 1e-5, sum, y, inverse); };
    });
    pass("rms_norm_backward", to_string(rows), 3 * n * acc_size_, n * acc_size_, [&](Operands& o) -> Call {
      return
          [this, dy = o.acc(rows), x = o.acc(rows), w = o.acc({c_.hidden_size}), inverse = o.acc({tokens_}),
           dx = o.acc(rows), dw = o.acc({c_.hidden_size})] { ops_.rms_norm_backward(dy, x, w, inverse, dx, dx, dw); };
    });
    pass("embedding", to_string(rows), n * size_, n * acc_size_, [&](Operands& o) -> Call {
      return [this, tokens = some_tokens(o), w = o.compute({c_.vocab_size, c_.hidden_size}), y = o.acc(rows)] {
        ops_.embedding(tokens, w, y);
      };
    });
    pass("embedding_backward", to_string(rows), 2 * n * acc_size_, n * acc_size_, [&](Operands& o) -> Call {
      return [this, dy = o.acc(rows), tokens = some_tokens(o), dw = o.acc({c_.vocab_size, c_.hidden_size})] {
        ops_.embedding_backward(dy, tokens, dw);
      };
    });
  }

  Tensor some_tokens(Operands& o) const {
    const RandomStream stream(1, Purpose::test, "tokens");
    return o.indices({tokens_}, [&](std::int64_t i) {
      return static_cast<std::int64_t>(stream.bits(static_cast<std::uint64_t>(i)) %
                                       static_cast<std::uint32_t>(c_.vocab_size));
    });
  }

  void feed_forward() {
    const std::int64_t rows = tokens_ * (c_.is_moe() ? c_.experts_per_token : 1), f = c_.intermediate_size;
    const Shape wide{rows, 2 * f}, narrow{rows, f};
    pass("swiglu", to_string(wide), 2 * rows * f * size_, rows * f * size_, [&](Operands& o) -> Call {
      return [this, x = o.compute(wide), y = o.compute(narrow)] { ops_.swiglu(x, y); };
    });
    pass("swiglu_backward", to_string(wide), 3 * rows * f * size_, 3 * rows * f * size_, [&](Operands& o) -> Call {
      return [this, dy = o.compute(narrow), x = o.compute(wide), dx = o.compute(wide), y = o.compute(narrow)] {
        ops_.swiglu_backward(dy, x, dx, y);
      };
    });
  }

  void routing() {
    const std::int64_t e = c_.experts, k = c_.experts_per_token, h = c_.hidden_size;
    const Shape rows{tokens_, h}, sent{tokens_ * k, h}, logits{tokens_, e}, chosen{tokens_, k};
    const auto expert_of = [=](std::int64_t i) { return (i / k + i % k * (e / k)) % e; };
    pass("router_logits", to_string(rows), rows.elements() * size_, logits.elements() * acc_size_,
         [&](Operands& o) -> Call {
           return [this, x = o.compute(rows), w = o.acc({e, h}), y = o.acc(logits)] { ops_.router_logits(x, w, y); };
         });
    pass("router_logits_backward", to_string(rows), rows.elements() * (size_ + acc_size_), rows.elements() * acc_size_,
         [&](Operands& o) -> Call {
           return [this, dy = o.acc(logits), x = o.compute(rows), w = o.acc({e, h}), dx = o.acc(rows),
                   dw = o.acc({e, h})] { ops_.router_logits_backward(dy, x, w, dx, dw); };
         });
    const std::int64_t all = tokens_ * e * acc_size_, some = tokens_ * k * acc_size_, each = tokens_ * acc_size_;
    pass("route", to_string(logits), all, all + some + each + tokens_ * k * 4, [&](Operands& o) -> Call {
      return [this, x = o.acc(logits), experts = o.indices(chosen, expert_of), w = o.acc(chosen), p = o.acc(logits),
              lse = o.acc({tokens_})] { ops_.route(x, RouterMode::topk_softmax, experts, w, p, lse); };
    });
    pass("route_backward", to_string(logits), all + 2 * some + each + tokens_ * k * 4, all, [&](Operands& o) -> Call {
      return [this, experts = o.indices(chosen, expert_of), w = o.acc(chosen), p = o.acc(logits),
              lse = o.acc({tokens_}), dw = o.acc(chosen), dp = o.acc({e}), dx = o.acc(logits)] {
        ops_.route_backward(RouterMode::topk_softmax, experts, w, p, lse, dw, dp, 1e-3, dx);
      };
    });
    pass("gather_rows", to_string(sent), sent.elements() * size_, sent.elements() * size_, [&](Operands& o) -> Call {
      const Tensor index = o.indices({sent[0]}, [&](std::int64_t i) { return i * 7919 % tokens_; });
      return [this, index, x = o.compute(rows), y = o.compute(sent)] { ops_.gather_rows(x, index, y); };
    });
    const auto slot = [&](std::int64_t i) { return i % k * tokens_ + i / k; };
    pass("combine", to_string(sent), sent.elements() * size_, rows.elements() * acc_size_, [&](Operands& o) -> Call {
      return [this, z = o.compute(sent), slots = o.indices(chosen, slot), w = o.acc(chosen), y = o.acc(rows)] {
        ops_.combine(z, slots, w, y);
      };
    });
    pass("combine_backward", to_string(sent), sent.elements() * size_ + rows.elements() * acc_size_,
         sent.elements() * size_, [&](Operands& o) -> Call {
           return [this, dy = o.acc(rows), z = o.compute(sent), slots = o.indices(chosen, slot), w = o.acc(chosen),
                   dz = o.compute(sent), dw = o.acc(chosen)] { ops_.combine_backward(dy, z, slots, w, dz, dw); };
         });
  }

  void loss() {
    const std::int64_t rows = std::min<std::int64_t>(tokens_, 1024), v = c_.vocab_size;
    pass("cross_entropy", to_string(Shape{rows, v}), rows * v * acc_size_, rows * v * size_, [&](Operands& o) -> Call {
      return [this, x = o.acc({rows, v}), targets = o.indices({rows}, [&](std::int64_t i) { return i * 31 % v; }),
              losses = o.acc({rows}), dx = o.compute({rows, v})] { ops_.cross_entropy(x, targets, 1, losses, dx); };
    });
  }

  void flat() {
    const Shape n{1 << 24};
    const std::string sizes = to_string(n);
    const std::int64_t floats = n[0] * acc_size_;
    pass("fill_zero", sizes, 0, floats,
         [&](Operands& o) -> Call { return [this, x = o.acc(n)] { ops_.fill_zero(x); }; });
    pass("convert", sizes, floats, n[0] * size_,
         [&](Operands& o) -> Call { return [this, x = o.acc(n), y = o.compute(n)] { ops_.convert(x, y); }; });
    pass("add", sizes, 2 * floats, floats,
         [&](Operands& o) -> Call { return [this, a = o.acc(n), b = o.acc(n), y = o.acc(n)] { ops_.add(a, b, y); }; });
    pass("squared_norm", sizes, floats, 0,
         [&](Operands& o) -> Call { return [this, x = o.acc(n)] { ops_.squared_norm(x); }; });
    const bool halves = compute_ == DType::bf16;
    pass("adamw", sizes, 4 * floats, 3 * floats, [&](Operands& o) -> Call {
      return [this, g = o.acc(n), master = halves ? o.zeros(DType::i16, n) : o.acc(n),
              m = o.zeros(accumulator_of(compute_), n), v = o.zeros(accumulator_of(compute_), n),
              w = halves ? o.compute(n) : Tensor()] { ops_.adamw({.learning_rate = 1e-4}, g, master, m, v, w); };
    });
  }

  Ops& ops_;
  double product_rate_;
  Mover mover_;
  DType compute_;
  const std::function<void(const OperationTime&)>& each_;
  const ModelConfig& c_;
  std::int64_t batch_, sequence_, tokens_, acc_size_, size_;
};

}  // namespace

void benchmark_ops(Ops& ops, DType compute, const Config& config, int threads,
                   const std::function<void(const OperationTime&)>& each) {
  Bench(ops, compute, config, threads, each).run();
}

}  // namespace dropcycle
