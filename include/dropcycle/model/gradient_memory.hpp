// Activations in the memory of gradients that aren't there yet.
//
// Backward makes a layer's gradients when the activations of all later layers are done with. So what layer l keeps may
// lie in the flat arrays anywhere before the gradients of layer l, and those begin to be held, and are zeroed, only
// when backward comes to l. With A bytes of activations and G of gradients a layer this takes about A + L max(A, G)
// instead of L (A + G). It needs gradients that begin at zero, and one microbatch in one chunk.
#pragma once

#include <cstdint>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/model/parameter_store.hpp"
#include "dropcycle/model/pipeline.hpp"

namespace dropcycle {

// What a layer's activations get, by the gradient group that lends.
enum class Lender : std::size_t { dense, expert };

class GradientMemory {
 public:
  // For the layers of a rank's only chunk. head_first: backward begins with the matrix that comes before the layers
  // (tied embeddings). The store outlives it.
  GradientMemory(const ParameterStore& store, const Chunk& chunk, bool head_first);

  // Lends what layer `layer` may use: of dense gradients to `saved`, of experts' to `routed`, which may be one arena.
  void lend(std::int64_t layer, Arena& saved, Arena& routed) const;
  // No further tensor is to lie there.
  void take_back(Arena& saved, Arena& routed) const;

  // Zero: all that no activations lie in, when backward begins; a layer's; the embedding's.
  void clear_rest(Ops& ops) const;
  void clear_layer(Ops& ops, std::int64_t layer) const;
  void clear_embedding(Ops& ops) const;

 private:
  // Elements of a group's array: what is lent begins at `base`, layer first + i at layers[i], what follows at the last.
  struct Places {
    std::int64_t base = 0;
    std::vector<std::int64_t> layers;
  };
  void borrow(Arena& arena, Lender lender, std::int64_t elements) const;
  void clear(Ops& ops, Lender lender, std::int64_t first, std::int64_t last) const;
  const Places& of(Lender lender) const { return places_[static_cast<std::size_t>(lender)]; }

  const ParameterStore& store_;
  std::int64_t first_;
  bool head_first_;
  std::array<Places, Arena::kLenders> places_;
};

}  // namespace dropcycle
