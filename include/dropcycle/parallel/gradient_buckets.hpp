// The sum of gradients over the replicas of their parameters, in buckets that travel while backward goes on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

struct BucketOptions {
  std::int64_t bucket_bytes = 16 << 20;  // a bucket ends at the parameter that makes it at least this large
  bool overlap = true;                   // false: all sums are taken in finish(), with the same bits
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
  // `offsets`: first element of each parameter, ascending from 0; a parameter, with the padding behind it, reaches to
  // the next. The array's memory is fixed for the life of the object. Throws Error{internal} on offsets that don't fit.
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
