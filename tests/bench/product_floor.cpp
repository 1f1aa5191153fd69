// The product floor: all matrix products of a training step, alone, each by the fastest way known on this processor
// (products.hpp). Prints a table to standard error and, for each EXPERTS, one line of JSON.
//   product_floor tiny|small|152m EXPERTS...      of a step; 0 experts: dense, else 2 of them per token
//   product_floor attention BATCH HEADS S D       of causal attention, forward and backward
// The router's products, under a thousandth of the whole, are left out. Experts have equally many rows.
#include <fmt/core.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "products.hpp"
#include "shapes.hpp"

using namespace dropcycle;

namespace {

class Floor {
 public:
  explicit Floor(bench::Products& products) : products_(products) {}

  // y[rows,out] = x[rows,in] wᵀ with dx and dw, `count` of them in the step.
  void linear(const char* name, std::int64_t rows, std::int64_t in, std::int64_t out, std::int64_t count) {
    const double flops = 2.0 * static_cast<double>(rows * in * out);
    add(fmt::format("{}", name), count, flops, products_.forward(rows, out, in, count));
    add(fmt::format("{} dx", name), count, flops, products_.forward(rows, in, out, count));
    add(fmt::format("{} dw", name), count, flops, products_.gradient(rows, out, in, count));
  }

  double attention(std::int64_t batch, std::int64_t heads, std::int64_t sequence, std::int64_t head_size,
                   std::int64_t count) {
    const double product = static_cast<double>(batch * heads * sequence * sequence * head_size);  // half the square
    const auto measured = products_.attention(batch, heads, sequence, head_size);
    add("attention", count, 2 * product, measured.forward);
    add("attention backward", count, 5 * product, measured.backward);
    return measured.own_forward + measured.own_backward;
  }

  double seconds() const { return seconds_; }
  double gflop() const { return 1e-9 * flops_; }

 private:
  void add(const std::string& name, std::int64_t count, double flops, const bench::Time& time) {
    fmt::print(stderr, "{:<20} {:>4} x {:>9.3f} ms  {:>6.0f} GFLOP/s  {}\n", name, count, 1e3 * time.seconds,
               1e-9 * flops / time.seconds, time.way);
    seconds_ += static_cast<double>(count) * time.seconds;
    flops_ += static_cast<double>(count) * flops;
  }

  bench::Products& products_;
  double seconds_ = 0, flops_ = 0;
};

void step(Floor& floor, const bench::Shapes& shapes) {
  const ModelConfig& c = shapes.config;
  const std::int64_t tokens = shapes.tokens(), heads = c.heads * c.head_size;
  const std::int64_t experts = std::max<std::int64_t>(c.experts, 1);
  const std::int64_t rows = tokens * (c.experts > 0 ? c.experts_per_token : 1) / experts;
  floor.linear("qkv", tokens, c.hidden_size, heads + 2 * c.kv_heads * c.head_size, c.layers);
  floor.attention(shapes.batch, c.heads, shapes.sequence, c.head_size, c.layers);
  floor.linear("attention out", tokens, heads, c.hidden_size, c.layers);
  floor.linear("gate and up", rows, c.hidden_size, 2 * c.intermediate_size, c.layers * experts);
  floor.linear("down", rows, c.intermediate_size, c.hidden_size, c.layers * experts);
  floor.linear("head", tokens, c.hidden_size, c.vocab_size, 1);
}

int run(const std::vector<std::string>& words) {
  if (words.size() < 2) fail(Status::usage, "usage: product_floor tiny|small|152m EXPERTS...");
  bench::Products products;
  const auto number = [&](std::size_t i) { return std::atoll(words[i].c_str()); };
  if (words[0] == "attention" && words.size() == 5) {
    Floor floor(products);
    const double own = floor.attention(number(1), number(2), number(3), number(4), 1);
    fmt::print("{{\"floor_seconds\": {:.6g}, \"gflop\": {:.6g}, \"dropcycle_seconds\": {:.6g}}}\n", floor.seconds(),
               floor.gflop(), own);
    return 0;
  }
  for (std::size_t i = 1; i < words.size(); ++i) {
    const bench::Shapes shapes = bench::shapes_of(words[0], number(i));
    Floor floor(products);
    step(floor, shapes);
    fmt::print("{{\"experts\": {}, \"floor_seconds\": {:.6g}, \"gflop\": {:.6g}}}\n", shapes.config.experts,
               floor.seconds(), floor.gflop());
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run({arguments + 1, arguments + count});
  } catch (const Error& error) {
    fmt::print(stderr, "product_floor: {}\n", error.what());
    return 1;
  }
}
