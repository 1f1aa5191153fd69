#include "profiled_ops.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <ctime>

namespace dropcycle {
namespace {

struct Time {
  const char* operation = nullptr;
  std::int64_t calls = 0;
  double seconds = 0, processor_seconds = 0;  // wall clock; of the calling thread
};

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class Timer {
 public:
  Timer(Time& time, const char* operation) : time_(time) { time.operation = operation; }
  ~Timer() {
    ++time_.calls;
    time_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    time_.processor_seconds += processor_seconds() - processor_start_;
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  Time& time_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double processor_start_ = processor_seconds();
};

class ProfiledOps final : public Ops {
 public:
  explicit ProfiledOps(std::unique_ptr<Ops> inner) : inner_(std::move(inner)) {}
  ~ProfiledOps() override { print(); }
  std::string_view name() const override { return inner_->name(); }
  void linear(const Tensor& x, const Weight& w, const Tensor& y) override {
    const Timer timer(times_[0], "linear");
    inner_->linear(x, w, y);
  }
  void linear_dx(const Tensor& dy, const Weight& w, const Tensor& dx) override {
    const Timer timer(times_[1], "linear_dx");
    inner_->linear_dx(dy, w, dx);
  }
  void linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) override {
    const Timer timer(times_[2], "linear_dw");
    inner_->linear_dw(dy, x, dw);
  }
  void grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Weight& w,
                      const Tensor& y) override {
    const Timer timer(times_[3], "grouped_linear");
    inner_->grouped_linear(x, offsets, w, y);
  }
  void grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Weight& w,
                         const Tensor& dx) override {
    const Timer timer(times_[4], "grouped_linear_dx");
    inner_->grouped_linear_dx(dy, offsets, w, dx);
  }
  void grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                         const Tensor& dw) override {
    const Timer timer(times_[5], "grouped_linear_dw");
    inner_->grouped_linear_dw(dy, x, offsets, dw);
  }
  void fill_zero(const Tensor& x) override {
    const Timer timer(times_[6], "fill_zero");
    inner_->fill_zero(x);
  }
  void convert(const Tensor& x, const Tensor& out) override {
    const Timer timer(times_[7], "convert");
    inner_->convert(x, out);
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& y) override {
    const Timer timer(times_[8], "add");
    inner_->add(a, b, y);
  }
  void jitter(const Tensor& x, const RandomStream& stream, std::uint64_t first, double amplitude,
              const Tensor& y) override {
    const Timer timer(times_[9], "jitter");
    inner_->jitter(x, stream, first, amplitude, y);
  }
  void embedding(const Tensor& tokens, const Tensor& w, const Tensor& y) override {
    const Timer timer(times_[10], "embedding");
    inner_->embedding(tokens, w, y);
  }
  void embedding_backward(const Tensor& dy, const Tensor& tokens, const Tensor& dw) override {
    const Timer timer(times_[11], "embedding_backward");
    inner_->embedding_backward(dy, tokens, dw);
  }
  void add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& w, double epsilon, const Tensor& sum,
                    const Tensor& y, const Tensor& inv_rms) override {
    const Timer timer(times_[12], "add_rms_norm");
    inner_->add_rms_norm(x, delta, w, epsilon, sum, y, inv_rms);
  }
  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& inv_rms,
                         const Tensor& dresidual, const Tensor& dx, const Tensor& dw) override {
    const Timer timer(times_[13], "rms_norm_backward");
    inner_->rms_norm_backward(dy, x, w, inv_rms, dresidual, dx, dw);
  }
  void rope(const Tensor& x, const Tensor& positions, const Tensor& inverse_frequencies, std::int64_t head_size,
            std::int64_t rotated_heads, int direction) override {
    const Timer timer(times_[14], "rope");
    inner_->rope(x, positions, inverse_frequencies, head_size, rotated_heads, direction);
  }
  void attention(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask, const Tensor& out,
                 const Tensor& lse) override {
    const Timer timer(times_[15], "attention");
    inner_->attention(shape, x, mask, out, lse);
  }
  void attention_backward(const AttentionShape& shape, const AttentionHeads& x, const AttentionMask& mask,
                          const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) override {
    const Timer timer(times_[16], "attention_backward");
    inner_->attention_backward(shape, x, mask, out, lse, dout, dx);
  }
  void copy_columns(const Columns& x, const Columns& out, std::int64_t width) override {
    const Timer timer(times_[17], "copy_columns");
    inner_->copy_columns(x, out, width);
  }
  void swiglu(const Tensor& gate_up, const Tensor& y) override {
    const Timer timer(times_[18], "swiglu");
    inner_->swiglu(gate_up, y);
  }
  void swiglu_backward(const Tensor& dy, const Tensor& gate_up, const Tensor& dgate_up, const Tensor& y) override {
    const Timer timer(times_[19], "swiglu_backward");
    inner_->swiglu_backward(dy, gate_up, dgate_up, y);
  }
  void router_logits(const Tensor& x, const Tensor& w, const Tensor& logits) override {
    const Timer timer(times_[20], "router_logits");
    inner_->router_logits(x, w, logits);
  }
  void router_logits_backward(const Tensor& dlogits, const Tensor& x, const Tensor& w, const Tensor& dx,
                              const Tensor& dw) override {
    const Timer timer(times_[21], "router_logits_backward");
    inner_->router_logits_backward(dlogits, x, w, dx, dw);
  }
  void route(const Tensor& logits, RouterMode mode, const Tensor& experts, const Tensor& weights,
             const Tensor& probabilities, const Tensor& lse) override {
    const Timer timer(times_[22], "route");
    inner_->route(logits, mode, experts, weights, probabilities, lse);
  }
  void route_backward(RouterMode mode, const Tensor& experts, const Tensor& weights, const Tensor& probabilities,
                      const Tensor& lse, const Tensor& dweights, const Tensor& dprobabilities, double z,
                      const Tensor& dlogits) override {
    const Timer timer(times_[23], "route_backward");
    inner_->route_backward(mode, experts, weights, probabilities, lse, dweights, dprobabilities, z, dlogits);
  }
  void sum_rows(const Tensor& x, const Tensor& out) override {
    const Timer timer(times_[24], "sum_rows");
    inner_->sum_rows(x, out);
  }
  void gather_rows(const Tensor& x, const Tensor& index, const Tensor& out) override {
    const Timer timer(times_[25], "gather_rows");
    inner_->gather_rows(x, index, out);
  }
  void combine(const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& y) override {
    const Timer timer(times_[26], "combine");
    inner_->combine(z, slots, weights, y);
  }
  void combine_backward(const Tensor& dy, const Tensor& z, const Tensor& slots, const Tensor& weights, const Tensor& dz,
                        const Tensor& dweights) override {
    const Timer timer(times_[27], "combine_backward");
    inner_->combine_backward(dy, z, slots, weights, dz, dweights);
  }
  void cross_entropy(const Tensor& logits, const Tensor& targets, double scale, const Tensor& losses,
                     const Tensor& dlogits) override {
    const Timer timer(times_[28], "cross_entropy");
    inner_->cross_entropy(logits, targets, scale, losses, dlogits);
  }
  void cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first,
                          const Tensor& part) override {
    const Timer timer(times_[31], "cross_entropy_part");
    inner_->cross_entropy_part(logits, targets, first, part);
  }
  void cross_entropy_of_parts(const Tensor& parts, const Tensor& logits, const Tensor& targets, std::int64_t first,
                              double scale, const Tensor& losses, const Tensor& dlogits) override {
    const Timer timer(times_[32], "cross_entropy_of_parts");
    inner_->cross_entropy_of_parts(parts, logits, targets, first, scale, losses, dlogits);
  }
  double squared_norm(const Tensor& x) override {
    const Timer timer(times_[29], "squared_norm");
    return inner_->squared_norm(x);
  }
  void adamw(const AdamwArguments& arguments, const Tensor& gradient, const Tensor& master, const Tensor& m,
             const Tensor& v, const Tensor& weight) override {
    const Timer timer(times_[30], "adamw");
    inner_->adamw(arguments, gradient, master, m, v, weight);
  }

 private:
  void print() {
    double total = 0;
    for (const Time& time : times_) total += time.seconds;
    std::ranges::sort(times_, [](const Time& a, const Time& b) { return a.seconds > b.seconds; });
    fmt::print(stderr, "{:<24} {:>9} {:>10} {:>10} {:>7}\n", "operation", "calls", "seconds", "cpu", "share");
    for (const Time& time : times_) {
      if (time.calls == 0) continue;
      fmt::print(stderr, "{:<24} {:>9} {:>10.3f} {:>10.3f} {:>6.1f}%\n", time.operation, time.calls, time.seconds,
                 time.processor_seconds, 100 * time.seconds / total);
    }
  }

  std::unique_ptr<Ops> inner_;
  std::array<Time, 33> times_{};
};

}  // namespace

std::unique_ptr<Ops> make_profiled_ops(std::unique_ptr<Ops> inner) {
  return std::make_unique<ProfiledOps>(std::move(inner));
}

}  // namespace dropcycle
