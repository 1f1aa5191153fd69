#include <array>
#include <cmath>
#include <map>
#include <vector>

#include "attention.hpp"
#include "attention_graph.hpp"
#include "attention_plan.hpp"
#include "dropcycle/device/arena.hpp"

namespace dropcycle::cuda {
namespace {

constexpr std::int64_t kAlignment = 16, kMostHeadSize = 128;

bool is_aligned(const Columns& columns) {
  const auto* first = static_cast<const std::byte*>(columns.matrix.data) + columns.first * 2;
  return columns.matrix.dtype == DType::bf16 && reinterpret_cast<std::uintptr_t>(first) % kAlignment == 0 &&
         columns.matrix.shape[1] * 2 % kAlignment == 0;
}

bool are_aligned(const AttentionHeads& x) { return is_aligned(x.q) && is_aligned(x.k) && is_aligned(x.v); }

HeadStrides strides_of(const AttentionShape& s, const Columns& columns) {
  const std::int64_t width = columns.matrix.shape[1];
  return {s.sequence * width, s.head_size, width};
}

// The memory of a head of one sequence.
void* at(const AttentionShape& s, const Columns& columns, std::int64_t sequence, std::int64_t head) {
  const std::int64_t place = sequence * s.sequence * columns.matrix.shape[1] + columns.first + head * s.head_size;
  return static_cast<std::byte*>(columns.matrix.data) + place * size_bytes(columns.matrix.dtype);
}

// A plan with the ids of its graph.
struct Planned {
  Planned(AttentionGraph made, const CudnnDescriptor& device, bool deterministic)
      : graph(std::move(made)), plan(graph.graph, device, deterministic) {}
  AttentionGraph graph;
  CudnnPlan plan;
};

}  // namespace

struct FlashAttention::Impl {
  Impl(CudaDevice& device_, bool deterministic_, double most_bytes_)
      : device(device_), deterministic(deterministic_), most_bytes(most_bytes_) {
    check_cudnn(cudnnCreate(&handle), "cudnnCreate");
    check_cudnn(cudnnSetStream(handle, device.stream()), "cudnnSetStream");
    properties.push_back(device_properties(handle));
  }
  ~Impl() {
    plans.clear();
    properties.clear();
    cudnnDestroy(handle);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // The options of one part, whose tensors lie in those of the whole.
  AttentionGraphOptions options_of(const AttentionShape& s, const AttentionPart& part, const AttentionHeads& x,
                                   const AttentionMask& mask, const Tensor& out) const {
    AttentionGraphOptions o;
    o.shape = s;
    o.shape.batch = part.sequences;
    o.shape.heads = part.kv_heads * (s.heads / s.kv_heads);
    o.shape.kv_heads = part.kv_heads;
    o.q = strides_of(s, x.q);
    o.k = strides_of(s, x.k);
    o.v = strides_of(s, x.v);
    o.out = strides_of(s, {out, 0});
    o.lse = {s.sequence * s.heads, 1, s.heads};
    o.documents = static_cast<bool>(mask.first_key);
    o.deterministic = deterministic;
    return o;
  }

  // The plan of an earlier call with these options, or its own.
  const Planned& planned(const AttentionGraphOptions& o, bool backward) {
    std::vector<std::int64_t> key = {backward,      o.documents,      o.shape.batch,    o.shape.sequence,
                                     o.shape.heads, o.shape.kv_heads, o.shape.head_size};
    for (const HeadStrides& strides : {o.q, o.k, o.v, o.out, o.lse, o.dq, o.dk, o.dv, o.dout}) {
      key.insert(key.end(), {strides.sequence, strides.head, strides.row});
    }
    auto& found = plans[key];
    if (!found) {
      found = std::make_unique<Planned>(backward ? attention_backward_graph(o) : attention_forward_graph(o),
                                        properties.front(), backward && deterministic);
    }
    return *found;
  }

  void* scratch(std::int64_t bytes) {
    if (memory.size_bytes() < bytes) {
      memory = {};
      memory = Buffer(bytes, device);
    }
    return memory.data();
  }

  template <class Call>
  void for_each_part(const AttentionShape& s, Call&& call) const {
    const AttentionPart part = attention_part(s, deterministic, most_bytes);
    require(part.kv_heads > 0, "attention over {} tokens needs more workspace than {} bytes", s.sequence, most_bytes);
    for (std::int64_t sequence = 0; sequence < s.batch; sequence += part.sequences) {
      for (std::int64_t head = 0; head < s.kv_heads; head += part.kv_heads) call(part, sequence, head);
    }
  }

  CudaDevice& device;
  bool deterministic;
  double most_bytes;
  cudnnHandle_t handle = nullptr;
  std::vector<CudnnDescriptor> properties;  // one
  std::map<std::vector<std::int64_t>, std::unique_ptr<Planned>> plans;
  Buffer memory;
};

FlashAttention::FlashAttention(CudaDevice& device, bool deterministic, double most_workspace_bytes)
    : impl_(std::make_unique<Impl>(device, deterministic, most_workspace_bytes)) {}
FlashAttention::~FlashAttention() = default;

bool FlashAttention::takes(const AttentionShape& s, const AttentionHeads& x, const AttentionMask& mask) const {
  return s.key_count() == s.sequence && !mask.last_key && s.head_size % 8 == 0 && s.head_size <= kMostHeadSize &&
         s.tokens() > 0 && are_aligned(x);
}

bool FlashAttention::takes(const AttentionShape& s, const AttentionHeads& x, const AttentionMask& mask,
                           const AttentionHeads& dx) const {
  return takes(s, x, mask) && are_aligned(dx) &&
         attention_part(s, impl_->deterministic, impl_->most_bytes).kv_heads > 0;
}

void FlashAttention::forward(const AttentionShape& s, const AttentionHeads& x, const AttentionMask& mask,
                             const Tensor& out, const Tensor& lse) {
  const AttentionPart whole{s.batch, s.kv_heads};
  const Planned& p = impl_->planned(impl_->options_of(s, whole, x, mask, out), false);
  const std::int64_t own = p.plan.workspace_bytes(), sums = lse ? 0 : s.tokens() * s.heads * 4;
  auto* scratch = static_cast<std::byte*>(impl_->scratch(own + sums));
  auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.head_size)));
  float lowest = kLowestScore;
  std::vector<std::pair<std::int64_t, void*>> memory = {{p.graph.q, at(s, x.q, 0, 0)},
                                                        {p.graph.k, at(s, x.k, 0, 0)},
                                                        {p.graph.v, at(s, x.v, 0, 0)},
                                                        {p.graph.out, out.data},
                                                        {p.graph.lse, lse ? lse.data : scratch + own},
                                                        {p.graph.scale, &scale},
                                                        {p.graph.lowest, &lowest}};
  if (mask.first_key) memory.emplace_back(p.graph.first_key, mask.first_key.data);
  p.plan.execute(impl_->handle, memory, scratch);
}

void FlashAttention::backward(const AttentionShape& s, const AttentionHeads& x, const AttentionMask& mask,
                              const Tensor& out, const Tensor& lse, const Tensor& dout, const AttentionHeads& dx) {
  auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.head_size)));
  float lowest = kLowestScore, one = 1;
  impl_->for_each_part(s, [&](const AttentionPart& part, std::int64_t sequence, std::int64_t kv_head) {
    AttentionGraphOptions o = impl_->options_of(s, part, x, mask, out);
    o.dq = strides_of(s, dx.q);
    o.dk = strides_of(s, dx.k);
    o.dv = strides_of(s, dx.v);
    o.dout = strides_of(s, {dout, 0});
    const Planned& p = impl_->planned(o, true);
    const std::int64_t rows = o.shape.tokens() * o.shape.heads, head = kv_head * (s.heads / s.kv_heads);
    const auto up = [](std::int64_t bytes) { return (bytes + 255) / 256 * 256; };
    const std::int64_t own = up(p.plan.workspace_bytes()), delta = up(rows * 4);
    const std::int64_t dq_sum = p.graph.dq_sum < 0 ? 0 : rows * s.head_size * 4;
    auto* scratch = static_cast<std::byte*>(impl_->scratch(own + delta + dq_sum));
    auto* lse_part = static_cast<float*>(lse.data) + sequence * s.sequence * s.heads + head;
    std::vector<std::pair<std::int64_t, void*>> memory = {{p.graph.q, at(s, x.q, sequence, head)},
                                                          {p.graph.k, at(s, x.k, sequence, kv_head)},
                                                          {p.graph.v, at(s, x.v, sequence, kv_head)},
                                                          {p.graph.out, at(s, {out, 0}, sequence, head)},
                                                          {p.graph.dout, at(s, {dout, 0}, sequence, head)},
                                                          {p.graph.dq, at(s, dx.q, sequence, head)},
                                                          {p.graph.dk, at(s, dx.k, sequence, kv_head)},
                                                          {p.graph.dv, at(s, dx.v, sequence, kv_head)},
                                                          {p.graph.lse, lse_part},
                                                          {p.graph.delta, scratch + own},
                                                          {p.graph.scale, &scale},
                                                          {p.graph.lowest, &lowest},
                                                          {p.graph.one, &one}};
    if (mask.first_key) {
      memory.emplace_back(p.graph.first_key, mask.first_key.as<std::int32_t>() + sequence * s.sequence);
    }
    if (dq_sum > 0) {
      check_cuda(cudaMemsetAsync(scratch + own + delta, 0, static_cast<std::size_t>(dq_sum), impl_->device.stream()),
                 "cudaMemsetAsync");
      memory.emplace_back(p.graph.dq_sum, scratch + own + delta);
    }
    p.plan.execute(impl_->handle, memory, scratch);
  });
}

}  // namespace dropcycle::cuda
