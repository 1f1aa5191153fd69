#include "dropcycle/parallel/gradient_buckets.hpp"

#include <algorithm>

namespace dropcycle {

GradientBuckets::GradientBuckets(Communicator& group, const Tensor& gradients, std::span<const std::int64_t> offsets,
                                 const BucketOptions& options)
    : group_(group), gradients_(gradients), options_(options) {
  const std::int64_t elements = gradients.elements();
  require(gradients.shape.dims() == 1 && (gradients.dtype == DType::f32 || gradients.dtype == DType::f64),
          "gradient buckets of {} {}: expected a flat array in f32 or f64", name(gradients.dtype),
          to_string(gradients.shape));
  require(elements == 0 || (!offsets.empty() && offsets.front() == 0 && offsets.back() <= elements &&
                            std::ranges::is_sorted(offsets)),
          "gradient buckets of {} elements: {} parameter offsets that don't ascend from 0", elements, offsets.size());
  require(options.bucket_bytes >= 1, "gradient buckets of {} bytes", options.bucket_bytes);
  if (group.size() == 1) return;
  std::int64_t last = elements;
  for (auto first = offsets.rbegin(); first != offsets.rend(); ++first) {
    const bool large_enough = (last - *first) * size_bytes(gradients.dtype) >= options.bucket_bytes;
    if (last == *first || (!large_enough && *first != 0)) continue;
    buckets_.push_back({.first = *first, .last = last, .pending = last - *first, .request = nullptr});
    last = *first;
  }
}

void GradientBuckets::mark_ready(std::int64_t first, std::int64_t last) {
  require(0 <= first && first <= last && last <= gradients_.elements(), "gradients [{}, {}) of {} marked as ready",
          first, last, gradients_.elements());
  for (Bucket& bucket : buckets_) {
    const std::int64_t covered = std::min(last, bucket.last) - std::max(first, bucket.first);
    if (covered <= 0) continue;
    bucket.pending -= covered;
    require(bucket.pending >= 0, "gradients [{}, {}) marked as ready twice in a step", first, last);
  }
  if (!options_.overlap) return;
  start_complete();
  progress();
}

void GradientBuckets::finish() {
  for (Bucket& bucket : buckets_) bucket.pending = 0;
  if (options_.overlap) progress();
  overlapped_ = static_cast<int>(done_);
  start_complete();
  for (Bucket& bucket : buckets_) {
    if (bucket.request) bucket.request->wait();
    bucket.request.reset();
    bucket.pending = bucket.last - bucket.first;
  }
  started_ = done_ = 0;
}

void GradientBuckets::start_complete() {
  for (; started_ < buckets_.size() && buckets_[started_].pending == 0; ++started_) {
    Bucket& bucket = buckets_[started_];
    bucket.request = group_.start_all_reduce(gradients_.rows(bucket.first, bucket.last - bucket.first));
  }
}

void GradientBuckets::progress() {
  while (done_ < started_ && buckets_[done_].request->test()) ++done_;
}

}  // namespace dropcycle
