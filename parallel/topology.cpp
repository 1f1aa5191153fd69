#include "dropcycle/parallel/topology.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "dropcycle/core/error.hpp"

namespace dropcycle {
namespace {

void check_positive(std::string_view axis, int size) {
  if (size < 1) fail(Status::usage, "parallel.{} = {}: expected at least 1", axis, size);
}

// The greatest divisor of n up to `near` and the least above it: "2 or 4", "4".
std::string nearest_divisors(int n, int near) {
  int below = 0, above = 0;
  for (int d = 1; d <= n; ++d) {
    if (n % d != 0) continue;
    if (d <= near) below = d;
    if (d > near && above == 0) above = d;
  }
  return above == 0 ? fmt::format("{}", below) : fmt::format("{} or {}", below, above);
}

// The ranks that share experts must divide those of a stage.
void check_expert_ranks(std::string_view axis, int size, int ranks, std::string_view divided) {
  if (ranks % size == 0) return;
  fail(Status::usage, "parallel.{} = {} does not divide the {} ranks of tensor * context * data{}: the nearest is {}",
       axis, size, ranks, divided, nearest_divisors(ranks, size));
}

// The multiples of `step` on both sides of `near`: "4 or 8", "4".
std::string nearest_multiples(int step, int near) {
  const int below = near / step * step;
  return below == 0 ? fmt::format("{}", step) : fmt::format("{} or {}", below, below + step);
}

}  // namespace

std::string_view name(GroupKind kind) {
  switch (kind) {
    case GroupKind::world:
      return "world";
    case GroupKind::tp:
      return "tp";
    case GroupKind::cp:
      return "cp";
    case GroupKind::dp:
      return "dp";
    case GroupKind::pp:
      return "pp";
    case GroupKind::stage:
      return "stage";
    case GroupKind::sequence:
      return "sequence";
    case GroupKind::embedding:
      return "embedding";
    case GroupKind::dense_gradient:
      return "dense_gradient";
    case GroupKind::etp:
      return "etp";
    case GroupKind::ep:
      return "ep";
    case GroupKind::expert_gradient:
      return "expert_gradient";
  }
  return "unknown";
}

Topology::Topology(const Layout& layout, int world_size) : layout_(layout), world_size_(world_size), edp_(1) {
  require(world_size >= 1, "a topology of {} ranks", world_size);
  check_positive("tensor", layout.tp);
  check_positive("context", layout.cp);
  check_positive("pipeline", layout.pp);
  check_positive("expert_tensor", layout.etp);
  check_positive("expert", layout.ep);
  if (layout.dp < 0) fail(Status::usage, "parallel.data = {}: expected 0 (what the ranks leave) or more", layout.dp);

  // Each factor is at most world_size where the product goes on, so 64 bits hold it.
  long long fixed = 1;
  for (const int size : {layout.tp, layout.cp, layout.pp}) {
    fixed *= size;
    if (fixed > world_size) {
      fail(Status::usage,
           "parallel.tensor {} * context {} * pipeline {} need more than the {} ranks started: make one smaller",
           layout.tp, layout.cp, layout.pp, world_size);
    }
  }
  if (world_size % fixed != 0) {
    fail(Status::usage,
         "{} ranks are not divisible by parallel.tensor {} * context {} * pipeline {} = {}: start {} ranks", world_size,
         layout.tp, layout.cp, layout.pp, fixed, nearest_multiples(static_cast<int>(fixed), world_size));
  }
  const int data_parallel = world_size / static_cast<int>(fixed);
  if (layout.dp != 0 && layout.dp != data_parallel) {
    const long long wanted = fixed * layout.dp;
    fail(
        Status::usage,
        "parallel.data = {} (* tensor {} * context {} * pipeline {}) needs {} ranks and {} were started: set it to {}, "
        "or start {} ranks",
        layout.dp, layout.tp, layout.cp, layout.pp, wanted, world_size, data_parallel, wanted);
  }
  layout_.dp = data_parallel;

  const int stage = stage_size();
  check_expert_ranks("expert_tensor", layout.etp, stage, "");
  const int expert_ranks = stage / layout.etp;
  check_expert_ranks("expert", layout.ep, expert_ranks, " / expert_tensor");
  edp_ = expert_ranks / layout.ep;
}

Coordinates Topology::coordinates(int rank) const {
  require(rank >= 0 && rank < world_size_, "rank {} of {}", rank, world_size_);
  const auto& [tp, cp, dp, pp, etp, ep] = layout_;
  const int q = rank % stage_size();
  return {.tp = rank % tp,
          .cp = rank / tp % cp,
          .dp = rank / (tp * cp) % dp,
          .pp = rank / stage_size(),
          .etp = q % etp,
          .ep = q / etp % ep,
          .edp = q / (etp * ep)};
}

int Topology::rank_of(int tp, int cp, int dp, int pp) const {
  require(tp >= 0 && tp < layout_.tp && cp >= 0 && cp < layout_.cp && dp >= 0 && dp < layout_.dp && pp >= 0 &&
              pp < layout_.pp,
          "coordinates tp {}, cp {}, dp {}, pp {} in {}", tp, cp, dp, pp, describe());
  return tp + layout_.tp * (cp + layout_.cp * (dp + layout_.dp * pp));
}

std::vector<int> Topology::members(GroupKind kind, int rank) const {
  const Coordinates at = coordinates(rank);
  const auto& [tp, cp, dp, pp, etp, ep] = layout_;
  // Every group is a row of ranks at a fixed stride (dp × cp too: dp goes on where cp ends).
  int first = rank, count = 1, stride = 1;
  switch (kind) {
    case GroupKind::world:
      first = 0, count = world_size_;
      break;
    case GroupKind::tp:
      first = rank - at.tp, count = tp;
      break;
    case GroupKind::cp:
      stride = tp, first = rank - at.cp * stride, count = cp;
      break;
    case GroupKind::dp:
      stride = tp * cp, first = rank - at.dp * stride, count = dp;
      break;
    case GroupKind::pp:
      stride = stage_size(), first = rank - at.pp * stride, count = pp;
      break;
    case GroupKind::stage:
      first = at.pp * stage_size(), count = stage_size();
      break;
    case GroupKind::sequence:
      first = rank - at.tp - tp * at.cp, count = tp * cp;
      break;
    case GroupKind::embedding:
      if (at.pp != 0 && at.pp != pp - 1) break;
      first = rank % stage_size(), stride = stage_size() * (pp - 1), count = pp == 1 ? 1 : 2;
      break;
    case GroupKind::dense_gradient:
      stride = tp, first = rank - (at.cp + cp * at.dp) * stride, count = cp * dp;
      break;
    case GroupKind::etp:
      first = rank - at.etp, count = etp;
      break;
    case GroupKind::ep:
      stride = etp, first = rank - at.ep * stride, count = ep;
      break;
    case GroupKind::expert_gradient:
      stride = etp * ep, first = rank - at.edp * stride, count = edp_;
      break;
  }
  std::vector<int> result;
  for (int i = 0; i < count; ++i) result.push_back(first + i * stride);
  return result;
}

int Topology::group_size(GroupKind kind) const { return static_cast<int>(members(kind, 0).size()); }

std::string Topology::describe() const {
  return fmt::format("tp {}, cp {}, dp {}, pp {}; etp {}, ep {}, edp {}", layout_.tp, layout_.cp, layout_.dp,
                     layout_.pp, layout_.etp, layout_.ep, edp_);
}

}  // namespace dropcycle
