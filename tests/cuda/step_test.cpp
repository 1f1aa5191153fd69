// A microbatch's forward and backward on the stand-in: what is asked of the device, once steps are alike.
#include <doctest/doctest.h>

#include "../layers/tiny_model.hpp"
#include "stand_in/counters.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

ModelConfig small_model(std::int64_t layers, std::int64_t experts) {
  return {.vocab_size = 64,
          .hidden_size = 128,
          .intermediate_size = 256,
          .layers = layers,
          .heads = 2,
          .kv_heads = 1,
          .head_size = 64,
          .experts = experts,
          .experts_per_token = 2,
          .rope_theta = 10000};
}

constexpr std::int64_t kSequences = 2, kSequence = 128;

// What the second and the third step of a model ask for, on average.
stand_in::Counters counted_step(const ModelConfig& config, bool graphs) {
  const auto ops = make_ops("cuda", {.graphs = graphs});
  const Groups groups = Groups::single(ops->device());
  Model model(config, groups, *ops, DType::bf16);
  fill(model);
  const TinyBatch data(config, kSequences, kSequence);
  const MicrobatchTraining training = training_with(BalanceScope::all_layers);
  for (int i = 0; i < 2; ++i) model.forward_backward(std::span(&data.batch, 1), training);
  ops->device().synchronize();
  const stand_in::Counters before = stand_in::counted();
  constexpr int kSteps = 2;
  for (int i = 0; i < kSteps; ++i) model.forward_backward(std::span(&data.batch, 1), training);
  ops->device().synchronize();
  const stand_in::Counters after = stand_in::counted();
  return {.allocations = after.allocations - before.allocations,
          .copied_bytes = (after.copied_bytes - before.copied_bytes) / kSteps,
          .set_bytes = (after.set_bytes - before.set_bytes) / kSteps,
          .product_bytes = (after.product_bytes - before.product_bytes) / kSteps,
          .kernel_bytes = (after.kernel_bytes - before.kernel_bytes) / kSteps,
          .graph_bytes = (after.graph_bytes - before.graph_bytes) / kSteps,
          .launches = (after.launches - before.launches) / kSteps};
}

std::int64_t moved(const stand_in::Counters& c) {
  return c.copied_bytes + c.set_bytes + c.product_bytes + c.kernel_bytes + c.graph_bytes;
}

// The least that forward and backward of one layer move, if everything but products, attention, norms and the sum of a
// token's experts happened while these read and write: each product's operands and result once (weights' gradients,
// which accumulate, twice), attention's likewise, and what backward needs once. In bytes; H hidden, F intermediate, Q
// and QKV the widths of queries and of all heads, R rows of the feed-forward part.
double least(const ModelConfig& c) {
  const double t = kSequences * kSequence, h = static_cast<double>(c.hidden_size),
               f = static_cast<double>(c.intermediate_size), q = static_cast<double>(c.heads * c.head_size),
               qkv = static_cast<double>((c.heads + 2 * c.kv_heads) * c.head_size);
  const double experts = static_cast<double>(std::max<std::int64_t>(1, c.experts));
  const double rows = c.is_moe() ? t * static_cast<double>(c.experts_per_token) : t;
  const auto product = [](double m, double in, double out, double copies, double result) {
    return 2 * m * in + 2 * copies * in * out + result * m * out;
  };
  const auto gradient = [](double m, double in, double out, double copies) {
    return 2 * m * (in + out) + 8 * copies * in * out;
  };
  const double norm = t * h * (4 + 4 + 4 + 2) + t * h * 4 * 4;  // x, delta, sum, y; dy, x, g, g
  const double attention = 2 * t * (qkv + q) + 2 * t * (qkv + q + q + qkv);
  const double attention_part = product(t, h, qkv, 1, 2) + product(t, q, h, 1, 4) + product(t, h, q, 1, 2) +
                                product(t, qkv, h, 1, 4) + gradient(t, h, qkv, 1) + gradient(t, q, h, 1);
  const double activated = 2 * rows * f, gate_up = 4 * rows * f;  // written beside gate_up; read again in backward
  const double down = c.is_moe() ? 2 : 4;                         // bytes of a result
  double feed_forward = product(rows, h, 2 * f, experts, 2) + activated + product(rows, f, h, experts, down) +
                        product(rows, h, f, experts, 0) + gate_up + gate_up /* its gradient, written */ +
                        product(rows, 2 * f, h, experts, down) + gradient(rows, f, h, experts) +
                        gradient(rows, h, 2 * f, experts);
  // A token's sum: its experts' rows and itself; backward the other way for rows and for the norm's gradient.
  if (c.is_moe()) feed_forward += 2 * (2 * rows * h + 4 * t * h) + 2 * rows * h;
  return 2 * norm + attention + attention_part + feed_forward;
}

}  // namespace

TEST_CASE("steps that are alike allocate nothing") {
  CHECK(counted_step(small_model(1, 0), false).allocations == 0);
  CHECK(counted_step(small_model(1, 4), false).allocations == 0);
}

TEST_CASE("CUDA graphs: two a layer of a mixture, four a dense layer") {
  CHECK(counted_step(small_model(2, 0), true).launches == 8);
  CHECK(counted_step(small_model(2, 4), true).launches == 4);
}

TEST_CASE("a layer moves at most one and a half times the least bytes") {
  for (const std::int64_t experts : {0, 4}) {
    const stand_in::Counters two = counted_step(small_model(2, experts), false),
                             one = counted_step(small_model(1, experts), false);
    const auto bytes = static_cast<double>(moved(two) - moved(one));
    const double bound = least(small_model(1, experts));
    MESSAGE(std::string(experts > 0 ? "mixture: " : "dense: "), bytes / 1e6, " MB, least ", bound / 1e6,
            " MB: ", bytes / bound, "; products ", static_cast<double>(two.product_bytes - one.product_bytes) / 1e6,
            ", kernels ", static_cast<double>(two.kernel_bytes - one.kernel_bytes) / 1e6, ", attention ",
            static_cast<double>(two.graph_bytes - one.graph_bytes) / 1e6, ", copies and fills ",
            static_cast<double>(two.copied_bytes + two.set_bytes - one.copied_bytes - one.set_bytes) / 1e6);
    CHECK((bytes <= 1.5 * bound));
    CHECK((bytes >= bound));
  }
}
