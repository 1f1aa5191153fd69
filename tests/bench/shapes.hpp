// The model shapes that the benchmarks compare with other trainers.
#pragma once

#include <string>

#include "dropcycle/core/config.hpp"
#include "dropcycle/core/error.hpp"

namespace dropcycle::bench {

struct Shapes {
  ModelConfig config;
  std::int64_t batch, sequence;
  std::int64_t tokens() const { return batch * sequence; }
};

// size: "tiny", "small" or "152m" (the paper's Table 4); experts 0: dense, else 2 of them per token.
inline Shapes shapes_of(const std::string& size, std::int64_t experts) {
  if (size != "tiny" && size != "small" && size != "152m") {
    fail(Status::usage, "unknown shape '{}': give tiny, small or 152m", size);
  }
  const bool tiny = size == "tiny";
  ModelConfig config{.vocab_size = size == "152m" ? 99584 : 16384,
                     .hidden_size = tiny ? 256 : 512,
                     .intermediate_size = tiny ? 1024 : 2048,
                     .layers = tiny ? 6 : 12,
                     .heads = tiny ? 4 : 8,
                     .kv_heads = tiny ? 4 : 8,
                     .head_size = 64,
                     .experts = experts,
                     .rope_theta = 10000};
  if (experts > 0) config.experts_per_token = 2;
  return {config, tiny ? 8 : 4, tiny ? 512 : 1024};
}

}  // namespace dropcycle::bench
