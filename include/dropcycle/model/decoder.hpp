// Generation token by token with a key/value cache, one sequence at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dropcycle/model/model.hpp"

namespace dropcycle {

class Decoder {
 public:
  // Room for `capacity` places. `model` must live longer and must not train meanwhile. Throws Error{usage} under
  // context parallelism.
  Decoder(Model& model, std::int64_t capacity);
  // Appends tokens to the sequence and returns the logits [V] after the last one, on every stage. Collective
  // over tp, ep and pp.
  // Throws Error{usage} if the sequence outgrows the capacity.
  std::vector<float> append(std::span<const std::int32_t> tokens);
  std::int64_t length() const { return length_; }

 private:
  // Rows that make the newest ones a multiple of TP. They come behind all others, which see nothing of them, and the
  // next call overwrites them.
  std::int64_t padding(std::int64_t news) const;

  Model& model_;
  std::int64_t capacity_, length_ = 0;
  std::vector<OwnedTensor> keys_, values_;  // one a layer: [capacity + TP - 1, Nkv_local D]
};

}  // namespace dropcycle
