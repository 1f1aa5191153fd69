#include "dropcycle/model/gradient_memory.hpp"

#include <fmt/format.h>

#include "dropcycle/core/profile.hpp"

namespace dropcycle {
namespace {

constexpr std::array kLenders = {Lender::dense, Lender::expert};

GradientGroup group_of(Lender lender) { return lender == Lender::dense ? GradientGroup::dense : GradientGroup::expert; }

}  // namespace

GradientMemory::GradientMemory(const ParameterStore& store, const Chunk& chunk, bool head_first)
    : store_(store), first_(chunk.first), head_first_(head_first) {
  for (const Lender lender : kLenders) {
    Places& places = places_[static_cast<std::size_t>(lender)];
    std::int64_t end = 0;
    for (std::int64_t l = chunk.first; l < chunk.last; ++l) {
      const FlatRange range = store.range_of(fmt::format("layers.{}.", l), group_of(lender));
      places.layers.push_back(range.first);
      end = range.last;
    }
    places.layers.push_back(end);
    places.base = head_first ? places.layers.front() : 0;
  }
}

void GradientMemory::borrow(Arena& arena, Lender lender, std::int64_t elements) const {
  const Tensor gradients = store_.gradients(group_of(lender));
  const std::int64_t size = size_bytes(gradients.dtype);
  auto* memory = static_cast<std::byte*>(gradients.data);
  arena.borrow(static_cast<std::size_t>(lender), memory + of(lender).base * size, elements * size);
}

void GradientMemory::lend(std::int64_t layer, Arena& saved, Arena& routed) const {
  const auto i = static_cast<std::size_t>(layer - first_);
  borrow(saved, Lender::dense, of(Lender::dense).layers[i] - of(Lender::dense).base);
  borrow(routed, Lender::expert, of(Lender::expert).layers[i] - of(Lender::expert).base);
}

void GradientMemory::take_back(Arena& saved, Arena& routed) const {
  borrow(saved, Lender::dense, 0);
  borrow(routed, Lender::expert, 0);
}

void GradientMemory::clear(Ops& ops, Lender lender, std::int64_t first, std::int64_t last) const {
  if (last > first) ops.fill_zero(store_.gradients(group_of(lender)).rows(first, last - first));
}

void GradientMemory::clear_rest(Ops& ops) const {
  const Span span(SpanKind::phase, "clear gradients");
  ops.fill_zero(store_.gradients(GradientGroup::replicated));
  for (const Lender lender : kLenders) {
    clear(ops, lender, 0, of(lender).base);
    clear(ops, lender, of(lender).layers.back(), store_.elements(group_of(lender)));
  }
}

void GradientMemory::clear_layer(Ops& ops, std::int64_t layer) const {
  const Span span(SpanKind::phase, "clear gradients");
  const auto i = static_cast<std::size_t>(layer - first_);
  for (const Lender lender : kLenders) clear(ops, lender, of(lender).layers[i], of(lender).layers[i + 1]);
}

void GradientMemory::clear_embedding(Ops& ops) const {
  const Span span(SpanKind::phase, "clear gradients");
  if (!head_first_) clear(ops, Lender::dense, 0, of(Lender::dense).layers.front());
}

}  // namespace dropcycle
