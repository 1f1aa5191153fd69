#include "dropcycle/layers/moe/dispatcher.hpp"

#include <algorithm>
#include <numeric>

#include "dropcycle/layers/parameter.hpp"

namespace dropcycle {
namespace {

std::span<std::int64_t> array(Arena& arena, std::int64_t count) {
  return {arena.array<std::int64_t>(count), static_cast<std::size_t>(count)};
}

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
  const auto* ids = experts.as<std::int32_t>();
  DispatchPlan plan;
  plan.token_of_row = c.saved.tensor(DType::i32, {tokens * chosen});
  plan.slots = c.saved.tensor(DType::i32, {tokens, chosen});
  // 1. Counting sort by expert.
  const auto counts = array(c.saved, experts_), next = array(c.saved, experts_);
  std::fill(counts.begin(), counts.end(), 0);
  for (std::int64_t i = 0; i < tokens * chosen; ++i) ++counts[static_cast<std::size_t>(ids[i])];
  std::exclusive_scan(counts.begin(), counts.end(), next.begin(), std::int64_t{0});
  auto* token_of_row = plan.token_of_row.as<std::int32_t>();
  auto* slots = plan.slots.as<std::int32_t>();
  for (std::int64_t i = 0; i < tokens * chosen; ++i) {
    const std::int64_t row = next[static_cast<std::size_t>(ids[i])]++;
    token_of_row[row] = static_cast<std::int32_t>(i / chosen);
    slots[i] = static_cast<std::int32_t>(row);
  }
  // 2. Row counts for and from every rank: received[r, e] rows come from rank r for local expert e.
  const auto received = array(c.saved, experts_);
  c.groups[GroupKind::ep].all_to_all_counts(counts, received);
  plan.send = array(c.saved, ranks_);
  plan.receive = array(c.saved, ranks_);
  for (std::int64_t r = 0; r < ranks_; ++r) {
    const auto first = static_cast<std::ptrdiff_t>(r * local_experts_), last = first + local_experts_;
    plan.send[static_cast<std::size_t>(r)] = std::reduce(counts.begin() + first, counts.begin() + last);
    plan.receive[static_cast<std::size_t>(r)] = std::reduce(received.begin() + first, received.begin() + last);
  }
  Communicator& etp = c.groups[GroupKind::etp];
  const auto own = array(c.saved, experts_ * etp.size()), all = array(c.saved, experts_ * etp.size());
  for (std::int64_t r = 0; r < etp.size(); ++r) std::ranges::copy(received, own.begin() + r * experts_);
  etp.all_to_all_counts(own, all);  // every rank of etp gets this rank's counts
  plan.gathered = array(c.saved, etp.size());
  for (std::int64_t r = 0; r < etp.size(); ++r) {
    const auto first = all.begin() + r * experts_;
    plan.gathered[static_cast<std::size_t>(r)] = std::reduce(first, first + experts_);
  }
  // 3. Grouping by local expert.
  group_received(c, all, plan);
  return plan;
}

void Dispatcher::group_received(Context& c, std::span<const std::int64_t> counts, DispatchPlan& plan) const {
  plan.offsets = array(c.saved, local_experts_ + 1);
  plan.offsets[0] = 0;
  for (std::int64_t e = 0; e < local_experts_; ++e) {
    std::int64_t rows = 0;
    for (std::int64_t s = 0; s < sources_; ++s) rows += counts[static_cast<std::size_t>(s * local_experts_ + e)];
    plan.offsets[static_cast<std::size_t>(e + 1)] = plan.offsets[static_cast<std::size_t>(e)] + rows;
  }
  if (alone()) return;
  plan.group_index = c.saved.tensor(DType::i32, {plan.rows()});
  plan.ungroup_index = c.saved.tensor(DType::i32, {plan.rows()});
  auto* group = plan.group_index.as<std::int32_t>();
  auto* ungroup = plan.ungroup_index.as<std::int32_t>();
  const auto next = array(c.saved, local_experts_);
  std::copy_n(plan.offsets.begin(), local_experts_, next.begin());
  std::int32_t row = 0;  // in the order of arrival: by source, then by local expert
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const std::size_t expert = i % static_cast<std::size_t>(local_experts_);
    for (std::int64_t n = 0; n < counts[i]; ++n, ++row) {
      const std::int64_t grouped = next[expert]++;
      group[grouped] = row;
      ungroup[row] = static_cast<std::int32_t>(grouped);
    }
  }
}

Tensor Dispatcher::sort(Context& c, const DispatchPlan& plan, const Tensor& x) const {
  const Shape shape{plan.token_of_row.shape[0], x.shape[1]};
  const Tensor sorted = (alone() ? c.saved : c.scratch).tensor(x.dtype, shape);  // alone: the experts' input
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
