// All parameters of one rank in flat arrays on the model's device, one set per gradient group: weights (compute; acc
// where norms and routers stand, in `replicated`), gradients (acc) and masters. Where weights are acc they are the
// masters; a bf16 weight is the upper half of its f32 master (MasterHalves), and the lower half (i16) is kept beside
// it. The optimizer and the gradient reduction see flat arrays; layers see views.
//
// Each array is cut into buckets, and each replica of it owns one piece of every bucket (piece_of). With a sharded
// optimizer (ZeRO-1, Rajbhandari et al., 2020) a rank keeps masters and moments of what it owns, else of everything.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "dropcycle/core/sharded.hpp"
#include "dropcycle/device/arena.hpp"
#include "dropcycle/layers/parameter.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

// Elements [first, last) of a group's flat arrays.
struct FlatRange {
  GradientGroup group = GradientGroup::dense;
  std::int64_t first = 0, last = 0;
};

// Elements [first, last) of a flat array and where they begin in an array of all that this rank keeps.
struct KeptRange {
  std::int64_t first = 0, last = 0, at = 0;
};

// Which of `ranks` ranks with the same parameters this one is.
struct Replica {
  int rank = 0, ranks = 1;
};

struct ShardOptions {
  bool optimizer = false;                // masters and moments of owned elements only
  std::int64_t bucket_bytes = 25 << 20;  // of gradients: what is summed, and gathered, together
};

class ParameterStore {
 public:
  // Lays the parameters out in the order of `specs`; blocks start at multiples of 64 elements.
  ParameterStore(std::vector<ParameterSpec> specs, DType compute, const PerGroup<Replica>& replicas = {},
                 const ShardOptions& shards = {}, Device& device = host_device());

  // Elements of the flat arrays that `specs` take.
  static PerGroup<std::int64_t> elements_of(const std::vector<ParameterSpec>& specs);

  DType compute() const { return compute_; }
  const ShardOptions& shards() const { return shards_; }
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  std::int64_t elements(GradientGroup group) const { return flats_[group].elements; }
  FlatRange range(std::size_t parameter) const { return ranges_[parameter]; }
  // The range from the first to the last parameter of `group` whose name starts with `prefix` (they are neighbours).
  FlatRange range_of(const std::string& prefix, GradientGroup group) const;
  // First element of each parameter of a group.
  std::vector<std::int64_t> offsets(GradientGroup group) const;

  // Flat arrays.
  Tensor gradients(GradientGroup group) const { return flats_[group].gradient; }
  Tensor weights(GradientGroup group) const { return flats_[group].weight; }
  const std::vector<Piece>& buckets(GradientGroup group) const { return flats_[group].buckets; }
  // This rank's pieces of the buckets: every element is owned by one replica.
  const std::vector<KeptRange>& owned(GradientGroup group) const { return flats_[group].owned; }
  // What this rank has masters of, and how many elements these are.
  const std::vector<KeptRange>& kept(GradientGroup group) const { return flats_[group].kept; }
  std::int64_t kept_elements(GradientGroup group) const;
  // Of elements [first, last) of what `range` keeps: the masters, or in_halves() their lower halves.
  Tensor master(GradientGroup group, const KeptRange& range, std::int64_t first, std::int64_t last) const;
  bool in_halves(GradientGroup group) const { return flats_[group].low.view().data != nullptr; }

  // View of a whole block (or of a parameter that is its own block) under the name of its first parameter.
  Tensor weight(const std::string& first_name, const Shape& shape) const;
  Tensor gradient(const std::string& first_name, const Shape& shape) const;

  // What this rank keeps of every parameter, with its places in the global tensor: a range of a matrix is up to three
  // rectangles. `flats` are arrays of kept_elements(). A part's `writer` is writes[group] (under
  // a sharded optimizer true), but false where another rank owns the parameter or nothing is in it.
  std::vector<ShardedTensor> sharded(const PerGroup<Tensor>& flats, const PerGroup<bool>& writes) const;
  // The masters; those in halves lie whole in the gradients' memory: join_masters() puts them there, and
  // split_masters() takes them from there and zeroes the gradients. Without `writes` all, for readers.
  std::vector<ShardedTensor> sharded_masters(const PerGroup<bool>& writes) const;
  std::vector<ShardedTensor> sharded_masters() const;
  void join_masters(Ops& ops) const;
  void split_masters(Ops& ops);
  // This rank's whole part of every parameter's gradient, one for each of specs().
  std::vector<ShardedTensor> sharded_gradients() const;
  // Weights that were put together in the gradients become masters and weights; the gradients become 0. What needs the
  // whole of a parameter at once (initialisation) has it there without more memory.
  void take_weights_from_gradients(Ops& ops);

  // Bytes of weights, gradients and masters.
  std::int64_t bytes() const;

  // Changes with every update of the weights (see Weight).
  std::uint64_t version() const { return version_; }
  void advance_version() { version_ = next_weight_version(); }

 private:
  struct Flat {
    OwnedTensor weight, gradient, low;  // the last of what is kept; none where the weights are the masters
    std::int64_t elements = 0;
    std::vector<Piece> buckets;
    std::vector<KeptRange> owned, kept;
  };
  void allocate(GradientGroup group, const Replica& replica, Device& device);
  const ParameterSpec& block_start(const std::string& first_name, const Shape& shape, FlatRange& range) const;
  // part(group, kept range, first, last) of every stretch of a parameter that is kept.
  template <class PartOf>
  std::vector<ShardedTensor> kept_parts(const PerGroup<bool>& writes, PartOf part) const;

  std::vector<ParameterSpec> specs_;
  DType compute_;
  ShardOptions shards_;
  std::vector<FlatRange> ranges_;
  std::unordered_map<std::string, std::size_t> by_name_;
  PerGroup<Flat> flats_;
  std::uint64_t version_ = next_weight_version();
};

}  // namespace dropcycle
