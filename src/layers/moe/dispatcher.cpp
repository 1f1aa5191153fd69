#include "dropcycle/layers/moe/dispatcher.hpp"

#include <algorithm>
#include <numeric>

#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {
namespace {

using Counts = std::vector<std::int64_t>;

Counts zeros(std::int64_t count) { return Counts(static_cast<std::size_t>(count)); }

}  // namespace

Dispatcher::Dispatcher(const ModelConfig& config, const Groups& groups)
    : experts_(config.experts),
      ranks_(groups[GroupKind::ep].size()),
      local_experts_(experts_ / ranks_),
      sources_(ranks_ * groups[GroupKind::etp].size()) {
  check_divides(config.experts, "model.experts", groups[GroupKind::ep], "parallel.expert");
}

DispatchPlan Dispatcher::plan(Context& c, const Tensor& experts) const {
  const std::int64_t tokens = experts.shape[0], chosen = experts.shape[1];
  DispatchPlan plan;
  plan.token_of_row = c.saved.tensor(DType::i32, {tokens * chosen});
  plan.slots = c.saved.tensor(DType::i32, {tokens, chosen});
  // 1. Rows by expert.
  const ArenaScope scope(c.scratch);
  const Tensor sizes = c.scratch.tensor(DType::i32, {experts_});
  c.ops.sort_rows(experts, sizes, plan.token_of_row, plan.slots);
  const HostCopy host_sizes(c.ops.device(), sizes);
  const auto* size_of = host_sizes.view().as<std::int32_t>();
  plan.counts.assign(size_of, size_of + experts_);
  // 2. Row counts for and from every rank: received[r, e] rows come from rank r for local expert e.
  Counts received = zeros(experts_);
  c.groups[GroupKind::ep].all_to_all_counts(plan.counts, received);
  plan.send = zeros(ranks_);
  plan.receive = zeros(ranks_);
  for (std::int64_t r = 0; r < ranks_; ++r) {
    const auto first = static_cast<std::ptrdiff_t>(r * local_experts_), last = first + local_experts_;
    plan.send[static_cast<std::size_t>(r)] = std::reduce(plan.counts.begin() + first, plan.counts.begin() + last);
    plan.receive[static_cast<std::size_t>(r)] = std::reduce(received.begin() + first, received.begin() + last);
  }
  Communicator& etp = c.groups[GroupKind::etp];
  Counts own = zeros(experts_ * etp.size()), all = own;
  for (std::int64_t r = 0; r < etp.size(); ++r) std::ranges::copy(received, own.begin() + r * experts_);
  etp.all_to_all_counts(own, all);  // every rank of etp gets this rank's counts
  plan.gathered = zeros(etp.size());
  for (std::int64_t r = 0; r < etp.size(); ++r) {
    const auto first = all.begin() + r * experts_;
    plan.gathered[static_cast<std::size_t>(r)] = std::reduce(first, first + experts_);
  }
  // 3. Grouping by local expert.
  group_received(c, all, plan);
  return plan;
}

void Dispatcher::group_received(Context& c, std::span<const std::int64_t> counts, DispatchPlan& plan) const {
  plan.offsets = zeros(local_experts_ + 1);
  for (std::int64_t e = 0; e < local_experts_; ++e) {
    std::int64_t rows = 0;
    for (std::int64_t s = 0; s < sources_; ++s) rows += counts[static_cast<std::size_t>(s * local_experts_ + e)];
    plan.offsets[static_cast<std::size_t>(e + 1)] = plan.offsets[static_cast<std::size_t>(e)] + rows;
  }
  if (alone()) return;
  std::vector<std::int32_t> group(static_cast<std::size_t>(plan.rows())), ungroup(group.size());
  Counts next(plan.offsets.begin(), plan.offsets.end() - 1);
  std::int32_t row = 0;  // in the order of arrival: by source, then by local expert
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const std::size_t expert = i % static_cast<std::size_t>(local_experts_);
    for (std::int64_t n = 0; n < counts[i]; ++n, ++row) {
      const auto grouped = static_cast<std::size_t>(next[expert]++);
      group[grouped] = row;
      ungroup[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(grouped);
    }
  }
  plan.group_index = upload(c.routed, group);
  plan.ungroup_index = upload(c.routed, ungroup);
}

Tensor Dispatcher::sort(Context& c, const DispatchPlan& plan, const Tensor& x, Arena& arena) const {
  const Tensor sorted = arena.tensor(x.dtype, {plan.token_of_row.shape[0], x.shape[1]});
  c.ops.gather_rows(x, plan.token_of_row, sorted);
  return sorted;
}

std::unique_ptr<Request> Dispatcher::exchange(Context& c, const Tensor& x, std::span<const std::int64_t> send,
                                              const Tensor& out, std::span<const std::int64_t> receive) const {
  Communicator& ep = c.groups[GroupKind::ep];
  if (c.dispatch_parts > 1) return ep.start_all_to_all(x, send, out, receive);
  ep.all_to_all(x, send, out, receive);  // nothing to compute meanwhile
  return nullptr;
}

TravellingRows Dispatcher::send(Context& c, const DispatchPlan& plan, const Tensor& rows) const {
  if (ranks_ == 1) return {rows, nullptr};
  const std::int64_t received = plan.gathered[static_cast<std::size_t>(c.groups[GroupKind::etp].rank())];
  const Tensor arrived = c.scratch.tensor(rows.dtype, {received, rows.shape[1]});
  return {arrived, exchange(c, rows, plan.send, arrived, plan.receive)};
}

Tensor Dispatcher::receive(Context& c, const DispatchPlan& plan, const TravellingRows& sent, Arena& arena) const {
  Tensor arrived = sent.arrived();
  if (alone()) return arrived;
  const Shape shape{plan.rows(), arrived.shape[1]};
  Communicator& etp = c.groups[GroupKind::etp];
  if (etp.size() > 1) {
    const Tensor all = c.scratch.tensor(arrived.dtype, shape);
    etp.all_gather(arrived, plan.gathered, all);
    arrived = all;
  }
  // 3. Group.
  const Tensor grouped = arena.tensor(arrived.dtype, shape);
  c.ops.gather_rows(arrived, plan.group_index, grouped);
  return grouped;
}

TravellingRows Dispatcher::send_back(Context& c, const DispatchPlan& plan, const Tensor& grouped, Arena& arena) const {
  if (alone()) return {grouped, nullptr};
  Communicator& etp = c.groups[GroupKind::etp];
  const std::int64_t width = grouped.shape[1], received = plan.gathered[static_cast<std::size_t>(etp.rank())];
  // 3'. Ungroup.
  Tensor arrived = c.scratch.tensor(grouped.dtype, grouped.shape);
  c.ops.gather_rows(grouped, plan.ungroup_index, arrived);
  // 2'. Sum and exchange back.
  if (etp.size() > 1) {
    const Tensor sum = c.scratch.tensor(grouped.dtype, {received, width});
    etp.reduce_scatter(arrived, plan.gathered, sum);
    arrived = (ranks_ > 1 ? c.scratch : arena).tensor(c.compute, {received, width});
    c.ops.convert(sum, arrived);
  }
  if (ranks_ == 1) return {arrived, nullptr};
  const Tensor rows = arena.tensor(c.compute, {plan.token_of_row.shape[0], width});
  return {rows, exchange(c, arrived, plan.receive, rows, plan.send)};
}

}  // namespace dropcycle
