// The sum of gradients over the replicas of their parameters, in buckets that travel while backward goes on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// Buckets of a flat array, ascending: cut from its end, each ends at the parameter that makes it at least
// `bucket_bytes` large. `offsets`: first element of each parameter, ascending from 0; a parameter, with the padding
// behind it, reaches to the next. Throws Error{internal} on offsets that don't fit.
std::vector<Piece> cut_into_buckets(std::int64_t elements, std::span<const std::int64_t> offsets,
                                    std::int64_t element_bytes, std::int64_t bucket_bytes);

struct BucketOptions {
  std::int64_t bucket_bytes = 16 << 20;
  bool overlap = true;  // false: all sums are taken in finish(), with the same bits
  // false: of every bucket each rank gets the sum of its own piece only (piece_of), with the same bits.
  bool gather = true;
};

// g = Σ over the group of g, in place, for one flat gradient array (f32 or f64): dense parameters over
// GroupKind::dense_gradient, experts over GroupKind::expert_gradient. Buckets are cut from the end of the array, where
// backward begins, and always start in that order, so that all ranks call the same collectives whatever the order in
// which their parameters finish. Once a step, after the last microbatch's gradient is added:
//
//   buckets.mark_ready(first, last);   // as backward finishes parameters, usually from the end to the beginning
//   buckets.finish();                  // all sums are there; ready for the next step
//
// A group of one does nothing.
class GradientBuckets {
 public:
  // `offsets` as for cut_into_buckets. The array's memory is fixed for the life of the object.
  GradientBuckets(Communicator& group, const Tensor& gradients, std::span<const std::int64_t> offsets,
                  const BucketOptions& options = {});
  // The parameters that begin in [first, last) are final on this rank, each once a step (Error{internal} on a second
  // time). Starts the buckets that are complete and lets those under way make progress.
  void mark_ready(std::int64_t first, std::int64_t last);
  // Takes what was not marked as final too, and returns when all sums are there.
  void finish();
  // Buckets, from the end of the array.
  int count() const { return static_cast<int>(buckets_.size()); }
  // Of the current step, or of the one just finished: sums that were there before finish() had to wait for them.
  int overlapped() const { return overlapped_; }

 private:
  struct Bucket {
    std::int64_t first, last;  // elements
    std::size_t parameters;
    std::size_t pending;  // parameters not yet final
    std::unique_ptr<Request> request;
  };
  void start_complete();
  void progress();

  Communicator& group_;
  Tensor gradients_;
  std::vector<std::int64_t> offsets_;
  BucketOptions options_;
  std::vector<Bucket> buckets_;
  std::size_t started_ = 0, done_ = 0;  // the first buckets: under way, there
  int overlapped_ = 0;
};

}  // namespace dropcycle
