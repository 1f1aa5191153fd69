#include "dropcycle/parallel/gradient_buckets.hpp"

#include <algorithm>

namespace dropcycle {

GradientBuckets::GradientBuckets(Communicator& group, const Tensor& gradients, std::span<const std::int64_t> offsets,
                                 const BucketOptions& options)
    : group_(group), gradients_(gradients), offsets_(offsets.begin(), offsets.end()), options_(options) {
  const std::int64_t elements = gradients.elements();
  require(gradients.shape.dims() == 1 && (gradients.dtype == DType::f32 || gradients.dtype == DType::f64),
          "gradient buckets of {} {}: expected a flat array in f32 or f64", name(gradients.dtype),
          to_string(gradients.shape));
  require(elements == 0 || (!offsets.empty() && offsets.front() == 0 && offsets.back() <= elements &&
                            std::ranges::is_sorted(offsets)),
          "gradient buckets of {} elements: {} parameter offsets that don't ascend from 0", elements, offsets.size());
  require(options.bucket_bytes >= 1, "gradient buckets of {} bytes", options.bucket_bytes);
  if (group.size() == 1) return;
  // A parameter without elements has nothing to sum.
  offsets_.erase(std::ranges::unique(offsets_).begin(), offsets_.end());
  if (!offsets_.empty() && offsets_.back() == elements) offsets_.pop_back();
  std::int64_t last = elements;
  std::size_t parameters = 0;  // of the bucket that grows
  for (auto first = offsets_.rbegin(); first != offsets_.rend(); ++first) {
    ++parameters;
    const bool large_enough = (last - *first) * size_bytes(gradients.dtype) >= options.bucket_bytes;
    if (!large_enough && first + 1 != offsets_.rend()) continue;
    buckets_.push_back({.first = *first, .last = last, .parameters = parameters, .pending = parameters, .request = {}});
    last = *first;
    parameters = 0;
  }
}

void GradientBuckets::mark_ready(std::int64_t first, std::int64_t last) {
  require(0 <= first && first <= last && last <= gradients_.elements(), "gradients [{}, {}) of {} marked as ready",
          first, last, gradients_.elements());
  const auto parameters_before = [&](std::int64_t element) {
    return std::ranges::lower_bound(offsets_, element) - offsets_.begin();
  };
  for (Bucket& bucket : buckets_) {
    const std::int64_t from = std::max(first, bucket.first), to = std::min(last, bucket.last);
    if (from >= to) continue;
    const auto ready = static_cast<std::size_t>(parameters_before(to) - parameters_before(from));
    require(ready <= bucket.pending, "gradients [{}, {}) marked as ready twice in a step", first, last);
    bucket.pending -= ready;
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
    bucket.pending = bucket.parameters;
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
