// Tiny models and batches with odd sizes for the gradient and parity tests.
#pragma once

#include <cmath>
#include <vector>

#include "dropcycle/device/host_mirror.hpp"
#include "dropcycle/model/model.hpp"

namespace dropcycle::test {

inline ModelConfig tiny_dense() {
  return {.vocab_size = 23,
          .hidden_size = 12,
          .intermediate_size = 10,
          .layers = 2,
          .heads = 6,
          .kv_heads = 2,
          .head_size = 4,
          .experts = 0,
          .rope_theta = 100};
}

inline ModelConfig tiny_moe(std::int64_t experts, std::int64_t chosen) {
  ModelConfig config = tiny_dense();
  config.experts = experts;
  config.experts_per_token = chosen;
  return config;
}

// Random tokens; some targets are ignored; with `reset` a document ends inside each sequence.
struct TinyBatch {
  TinyBatch(const ModelConfig& config, std::int64_t b, std::int64_t s, bool reset = false, std::uint64_t seed = 1) {
    const RandomStream stream(seed, Purpose::test, "batch");
    const auto count = static_cast<std::size_t>(b * s);
    for (std::size_t t = 0; t < count; ++t) {
      const auto vocab = static_cast<std::uint32_t>(config.vocab_size);
      const std::int64_t place = static_cast<std::int64_t>(t) % s, start = reset && place >= s / 2 ? s / 2 : 0;
      tokens.push_back(static_cast<std::int32_t>(stream.bits(2 * t) % vocab));
      targets.push_back(t % 5 == 3 ? -1 : static_cast<std::int32_t>(stream.bits(2 * t + 1) % vocab));
      positions.push_back(static_cast<std::int32_t>(place - start));
      first_key.push_back(static_cast<std::int32_t>(start));
    }
    const Shape shape{b * s};
    batch = {.batch = b,
             .sequence = s,
             .tokens = Tensor(tokens.data(), shape),
             .targets = Tensor(targets.data(), shape),
             .positions = Tensor(positions.data(), shape),
             .first_key = reset ? Tensor(first_key.data(), shape) : Tensor(),
             .first_token = 100};
  }
  std::vector<std::int32_t> tokens, targets, positions, first_key;
  Microbatch batch;
};

// Normal weights of std 0.3, norms around one, the same for every layout.
inline void fill(Model& model, std::uint64_t seed = 1) {
  HostMirror masters(model.ops().device(), model.parameters().sharded_masters());
  for (const ShardedTensor& part : masters.parts()) {
    const bool norm = part.name.find("norm") != std::string::npos;
    const RandomStream stream(seed, Purpose::test, part.name);
    for_each_run(part, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
      stream.fill_normal(part.local.reshaped({part.local.elements()}).rows(local, count),
                         static_cast<std::uint64_t>(global), norm ? 1.0 : 0.0, norm ? 0.1 : 0.3);
    });
  }
  masters.upload();
  model.weights_changed();
}

inline MicrobatchTraining training_with(BalanceScope scope, double z = 0, double jitter = 0) {
  return {.token_scale = 0.1,
          .router = {.balance = 0.05, .scope = scope, .z = z, .jitter = jitter, .seed = 5, .step = 3}};
}

// Times that memory is asked from the system once the same microbatch has run twice: none is right.
inline std::int64_t allocations_of_repeats(Model& model, const TinyBatch& data, const MicrobatchTraining& training) {
  for (int i = 0; i < 2; ++i) model.forward_backward(data.batch, training);
  const std::int64_t before = model.system_allocations();
  for (int i = 0; i < 3; ++i) model.forward_backward(data.batch, training);
  return model.system_allocations() - before;
}

// What backward differentiates.
inline double total_loss(const MicrobatchLosses& losses, const MicrobatchTraining& training) {
  return training.token_scale * losses.language + training.router.balance * losses.balance +
         training.router.z * losses.z;
}

}  // namespace dropcycle::test
