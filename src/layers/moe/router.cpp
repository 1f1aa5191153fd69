#include "dropcycle/layers/moe/router.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

namespace dropcycle {
namespace {

// Element i of an acc tensor.
double element(const Tensor& x, std::int64_t i) {
  return x.dtype == DType::f64 ? x.as<double>()[i] : static_cast<double>(x.as<float>()[i]);
}

// Values as an acc tensor in scratch.
Tensor to_acc(Context& c, const std::vector<double>& values) {
  const Tensor out = c.scratch.tensor(c.acc(), {static_cast<std::int64_t>(values.size())});
  if (out.dtype == DType::f64) {
    c.ops.device().upload(out.data, values.data(), out.bytes());
  } else {
    const std::vector<float> rounded(values.begin(), values.end());
    c.ops.device().upload(out.data, rounded.data(), out.bytes());
  }
  return out;
}

}  // namespace

RoutingStatistics::RoutingStatistics(std::int64_t layers_, std::int64_t experts_, std::int64_t tokens_)
    : layers(layers_),
      experts(experts_),
      tokens(tokens_),
      counts(static_cast<std::size_t>(layers * experts)),
      probabilities(static_cast<std::size_t>(layers * experts)),
      squared_lse(static_cast<std::size_t>(layers)),
      shares(static_cast<std::size_t>(experts)) {}

void RoutingStatistics::add_shares(std::int64_t first, std::int64_t last) {
  const double all = static_cast<double>(layers * tokens);
  for (std::int64_t l = first; l < last; ++l) {
    for (std::size_t e = 0; e < shares.size(); ++e)
      shares[e] += counts[static_cast<std::size_t>(l * experts) + e] / all;
  }
}

RoutingStatistics& RoutingStatistics::operator+=(const RoutingStatistics& other) {
  const auto add = [](std::vector<double>& sum, const std::vector<double>& values) {
    std::ranges::transform(sum, values, sum.begin(), std::plus<>());
  };
  add(counts, other.counts);
  add(probabilities, other.probabilities);
  add(squared_lse, other.squared_lse);
  add(shares, other.shares);
  tokens += other.tokens;
  return *this;
}

void RoutingStatistics::sum_over(Communicator& ranks) {
  if (ranks.size() == 1) return;
  std::vector<double> values{static_cast<double>(tokens)};
  for (const auto* part : {&counts, &probabilities, &squared_lse})
    values.insert(values.end(), part->begin(), part->end());
  ranks.sum(values);
  tokens = static_cast<std::int64_t>(values[0]);
  auto from = values.cbegin() + 1;
  for (auto* part : {&counts, &probabilities, &squared_lse}) {
    std::copy_n(from, part->size(), part->begin());
    from += std::ssize(*part);
  }
}

double RoutingStatistics::balance_loss(BalanceScope scope) const {
  double loss = 0;
  for (std::int64_t l = 0; l < layers; ++l) {
    const auto gradient = balance_gradient(scope, l, 1.0);
    for (std::int64_t e = 0; e < experts; ++e) {
      loss += gradient[static_cast<std::size_t>(e)] * probabilities[static_cast<std::size_t>(l * experts + e)];
    }
  }
  return loss;
}

double RoutingStatistics::z_loss() const {
  double sum = 0;
  for (const double value : squared_lse) sum += value;
  return sum / static_cast<double>(layers * tokens);
}

std::vector<double> RoutingStatistics::balance_gradient(BalanceScope scope, std::int64_t layer,
                                                        double coefficient) const {
  std::vector<double> gradient(static_cast<std::size_t>(experts));
  const double all = static_cast<double>(layers * tokens);
  for (std::int64_t e = 0; e < experts; ++e) {
    const double share =  // f_e or f_le
        scope == BalanceScope::per_layer
            ? counts[static_cast<std::size_t>(layer * experts + e)] / static_cast<double>(tokens)
            : shares[static_cast<std::size_t>(e)];
    gradient[static_cast<std::size_t>(e)] = coefficient * static_cast<double>(experts) * share / all;
  }
  return gradient;
}

Router::Router(const ModelConfig& config, std::int64_t layer)
    : config_(config),
      layer_(layer),
      mode_(config.router_mode == "topk_softmax" ? RouterMode::topk_softmax : RouterMode::softmax_topk) {
  require(config.router_mode == "topk_softmax" || config.router_mode == "softmax_topk", "router mode '{}'",
          config.router_mode);
  require(config.experts_per_token >= 1 && config.experts_per_token <= config.experts, "{} of {} experts per token",
          config.experts_per_token, config.experts);
}

void Router::jitter(Context& c, const Tensor& x, std::span<const TokenRun> runs, const RouterTraining& training,
                    const Tensor& y) const {
  const RandomStream stream(training.seed, Purpose::jitter, fmt::format("layers.{}", layer_), training.step);
  for (const TokenRun& run : runs) {
    c.ops.jitter(x.rows(run.row, run.count), stream, run.first_token * static_cast<std::uint64_t>(config_.hidden_size),
                 training.jitter, y.rows(run.row, run.count));
  }
}

void Router::forward(Context& c, const Tensor& w, const Tensor& x, std::span<const TokenRun> runs,
                     const RouterTraining& training, RouterSaved& saved) const {
  const ArenaScope scope(c.scratch);
  const std::int64_t tokens = x.shape[0], experts = config_.experts, chosen = config_.experts_per_token;
  // 1. Jitter.
  saved.input = x;
  if (training.jitter > 0) {
    saved.input = c.saved.tensor(c.compute, x.shape);
    jitter(c, x, runs, training, saved.input);
  }
  // 2. Logits in fp32.
  const Tensor logits = c.scratch.tensor(c.acc(), {tokens, experts});
  c.ops.router_logits(saved.input, w, logits);
  // 3. Choice and weights.
  saved.experts = c.saved.tensor(DType::i32, {tokens, chosen});
  saved.weights = c.saved.tensor(c.acc(), {tokens, chosen});
  saved.probabilities = c.saved.tensor(c.acc(), {tokens, experts});
  saved.lse = c.saved.tensor(c.acc(), {tokens});
  c.ops.route(logits, mode_, saved.experts, saved.weights, saved.probabilities, saved.lse);
  // 4. Sums for the losses.
  saved.sums = c.saved.tensor(c.acc(), {experts});
  c.ops.fill_zero(saved.sums);
  c.ops.sum_rows(saved.probabilities, saved.sums);
}

void Router::count(Context& c, const RouterSaved& saved, std::span<const std::int64_t> counts,
                   RoutingStatistics& statistics) const {
  const HostCopy sums(c.ops.device(), saved.sums), lse(c.ops.device(), saved.lse);
  const std::int64_t row = layer_ * config_.experts;
  for (std::int64_t e = 0; e < config_.experts; ++e) {
    statistics.probabilities[static_cast<std::size_t>(row + e)] = element(sums, e);
  }
  std::ranges::copy(counts, statistics.counts.begin() + row);
  double squares = 0;
  for (std::int64_t t = 0; t < saved.lse.elements(); ++t) squares += element(lse, t) * element(lse, t);
  statistics.squared_lse[static_cast<std::size_t>(layer_)] = squares;
}

void Router::backward(Context& c, const Tensor& w, const RouterSaved& saved, const RoutingStatistics& statistics,
                      const RouterTraining& training, std::span<const TokenRun> runs, const Tensor& dweights,
                      const Tensor& dx, const Tensor& dw) const {
  const ArenaScope scope(c.scratch);
  // 4 and 3. Losses and choice.
  const Tensor dprobabilities = training.balance == 0
                                    ? Tensor()
                                    : to_acc(c, statistics.balance_gradient(training.scope, layer_, training.balance));
  const double z = training.z / static_cast<double>(statistics.layers * statistics.tokens);
  const Tensor dlogits = c.scratch.tensor(c.acc(), saved.probabilities.shape);
  c.ops.route_backward(mode_, saved.experts, saved.weights, saved.probabilities, saved.lse, dweights, dprobabilities, z,
                       dlogits);
  // 2 and 1. Logits and jitter.
  if (training.jitter == 0) return c.ops.router_logits_backward(dlogits, saved.input, w, dx, dw);
  const Tensor djittered = c.scratch.tensor(c.acc(), dx.shape);
  c.ops.fill_zero(djittered);
  c.ops.router_logits_backward(dlogits, saved.input, w, djittered, dw);
  jitter(c, djittered, runs, training, djittered);
  c.ops.add(dx, djittered, dx);
}

}  // namespace dropcycle
