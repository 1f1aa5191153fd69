// Generation with the key/value cache against the whole-sequence forward pass.
#include "dropcycle/model/decoder.hpp"

#include <doctest/doctest.h>

#include "dropcycle/ops/backends.hpp"
#include "tiny_model.hpp"

using namespace dropcycle;
using namespace dropcycle::test;

namespace {

double loss_of(const std::vector<float>& logits, std::int32_t target) {
  double top = -INFINITY, sum = 0;
  for (const float value : logits) top = std::max(top, static_cast<double>(value));
  for (const float value : logits) sum += std::exp(value - top);
  return top + std::log(sum) - logits[static_cast<std::size_t>(target)];
}

}  // namespace

TEST_CASE("token by token, or in pieces, the cache gives the same distributions") {
  for (const ModelConfig& config : {tiny_dense(), tiny_moe(3, 2)}) {
    const auto ops = make_reference_ops();
    const Groups groups = Groups::single();
    Model model(config, groups, *ops, DType::f64);
    fill(model);
    TinyBatch data(config, 1, 9);
    for (auto& target : data.targets) target = std::max(target, 0);
    std::vector<double> losses(9);
    model.evaluate(data.batch, Tensor(losses.data(), {9}));
    for (const std::size_t piece : {1, 2, 4}) {
      Decoder decoder(model, 9);
      for (std::size_t first = 0; first < 9; first += piece) {
        const std::size_t count = std::min<std::size_t>(piece, 9 - first), last = first + count - 1;
        const auto logits = decoder.append(std::span(data.tokens).subspan(first, count));
        CHECK_FALSE(!(std::abs(loss_of(logits, data.targets[last]) - losses[last]) <= 1e-5));
      }
      CHECK_THROWS_AS(decoder.append({data.tokens.data(), 1}), Error);
    }
  }
}
