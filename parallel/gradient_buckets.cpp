#include "dropcycle/parallel/gradient_buckets.hpp"

#include <algorithm>

namespace dropcycle {

namespace {

// Without parameters that have no elements.
std::vector<std::int64_t> starts_of(std::int64_t elements, std::span<const std::int64_t> offsets) {
  require(elements == 0 || (!offsets.empty() && offsets.front() == 0 && offsets.back() <= elements &&
                            std::ranges::is_sorted(offsets)),
          "gradient buckets of {} elements: {} parameter offsets that don't ascend from 0", elements, offsets.size());
  std::vector<std::int64_t> starts(offsets.begin(), offsets.end());
  starts.erase(std::ranges::unique(starts).begin(), starts.end());
  if (!starts.empty() && starts.back() == elements) starts.pop_back();
  return starts;
}

}  // namespace

std::vector<Piece> cut_into_buckets(std::int64_t elements, std::span<const std::int64_t> offsets,
                                    std::int64_t element_bytes, std::int64_t bucket_bytes) {
  require(bucket_bytes >= 1, "gradient buckets of {} bytes", bucket_bytes);
  const std::vector<std::int64_t> starts = starts_of(elements, offsets);
  std::vector<Piece> buckets;
  std::int64_t last = elements;
  for (auto first = starts.rbegin(); first != starts.rend(); ++first) {
    const bool large_enough = (last - *first) * element_bytes >= bucket_bytes;
    if (!large_enough && first + 1 != starts.rend()) continue;
    buckets.push_back({*first, last - *first});
    last = *first;
  }
  std::ranges::reverse(buckets);
  return buckets;
}

GradientBuckets::GradientBuckets(Communicator& group, const Tensor& gradients, std::span<const std::int64_t> offsets,
                                 const BucketOptions& options)
    : group_(group), gradients_(gradients), offsets_(starts_of(gradients.elements(), offsets)), options_(options) {
  const std::int64_t elements = gradients.elements();
  require(gradients.shape.dims() == 1 && (gradients.dtype == DType::f32 || gradients.dtype == DType::f64),
          "gradient buckets of {} {}: expected a flat array in f32 or f64", name(gradients.dtype),
          to_string(gradients.shape));
  if (group.size() == 1) return;
  const auto pieces = cut_into_buckets(elements, offsets, size_bytes(gradients.dtype), options.bucket_bytes);
  for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
    const std::int64_t last = piece->first + piece->count;
    const auto parameters = static_cast<std::size_t>(std::ranges::lower_bound(offsets_, last) -
                                                     std::ranges::lower_bound(offsets_, piece->first));
    buckets_.push_back({.first = piece->first, .last = last, .parameters = parameters, .pending = parameters});
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
    const Tensor part = gradients_.rows(bucket.first, bucket.last - bucket.first);
    bucket.request = options_.gather ? group_.start_all_reduce(part) : group_.start_reduce_scatter(part);
  }
}

void GradientBuckets::progress() {
  while (done_ < started_ && buckets_[done_].request->test()) ++done_;
}

}  // namespace dropcycle
