#include "dropcycle/parallel/topology.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>

#include "dropcycle/core/error.hpp"

using namespace dropcycle;

namespace {

// What Topology says of `layout` on `ranks` ranks: its error's text, or nothing.
std::string refusal(const Layout& layout, int ranks) {
  try {
    const Topology topology(layout, ranks);
    return "";
  } catch (const Error& error) {
    CHECK(error.status() == Status::usage);
    return error.what();
  }
}

// Ranks of `kind`'s group by definition: all ranks whose other coordinates are equal.
std::vector<int> members_by_search(const Topology& topology, GroupKind kind, int rank) {
  const Coordinates at = topology.coordinates(rank);
  std::vector<int> result;
  for (int other = 0; other < topology.world_size(); ++other) {
    const Coordinates to = topology.coordinates(other);
    const bool same_tp = at.tp == to.tp, same_cp = at.cp == to.cp, same_dp = at.dp == to.dp, same_pp = at.pp == to.pp;
    const bool same_etp = at.etp == to.etp, same_ep = at.ep == to.ep, same_edp = at.edp == to.edp;
    bool together = false;
    switch (kind) {
      case GroupKind::world:
        together = true;
        break;
      case GroupKind::tp:
        together = same_cp && same_dp && same_pp;
        break;
      case GroupKind::cp:
        together = same_tp && same_dp && same_pp;
        break;
      case GroupKind::dp:
        together = same_tp && same_cp && same_pp;
        break;
      case GroupKind::pp:
        together = same_tp && same_cp && same_dp;
        break;
      case GroupKind::stage:
        together = same_pp;
        break;
      case GroupKind::sequence:
        together = same_dp && same_pp;
        break;
      case GroupKind::embedding: {
        const int last = topology.layout().pp - 1;
        const bool ends = (at.pp == 0 || at.pp == last) && (to.pp == 0 || to.pp == last);
        together = same_tp && same_cp && same_dp && (same_pp || ends);
        break;
      }
      case GroupKind::dense_gradient:
        together = same_tp && same_pp;
        break;
      case GroupKind::etp:
        together = same_ep && same_edp && same_pp;
        break;
      case GroupKind::ep:
        together = same_etp && same_edp && same_pp;
        break;
      case GroupKind::expert_gradient:
        together = same_etp && same_ep && same_pp;
        break;
    }
    if (together) result.push_back(other);
  }
  return result;
}

std::vector<int> divisors(int n) {
  std::vector<int> result;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) result.push_back(d);
  }
  return result;
}

// visit(topology) for every layout of `ranks` ranks.
template <class F>
void for_each_layout(int ranks, F&& visit) {
  for (const int tp : divisors(ranks)) {
    for (const int cp : divisors(ranks / tp)) {
      for (const int dp : divisors(ranks / tp / cp)) {
        const int pp = ranks / tp / cp / dp, stage = tp * cp * dp;
        for (const int etp : divisors(stage)) {
          for (const int ep : divisors(stage / etp)) {
            visit(Topology({.tp = tp, .cp = cp, .dp = dp, .pp = pp, .etp = etp, .ep = ep}, ranks));
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("the grids' formulas hold both ways for every rank of every layout") {
  for (const int ranks : {1, 2, 3, 4, 6, 8, 12, 30, 64, 1024}) {
    long long wrong = 0, layouts = 0;
    for_each_layout(ranks, [&](const Topology& topology) {
      // All layouts of 1,024 ranks are 3,003; the dense formula is checked on each, at a stride that isn't a divisor.
      const Layout& l = topology.layout();
      ++layouts;
      for (int rank = 0; rank<ranks; rank += ranks> 100 ? 37 : 1) {
        const Coordinates at = topology.coordinates(rank);
        const int q = rank % (l.tp * l.cp * l.dp);
        if (rank != at.tp + l.tp * (at.cp + l.cp * (at.dp + l.dp * at.pp))) ++wrong;
        if (q != at.etp + l.etp * (at.ep + l.ep * at.edp)) ++wrong;
        if (at.tp >= l.tp || at.cp >= l.cp || at.dp >= l.dp || at.pp >= l.pp) ++wrong;
        if (at.etp >= l.etp || at.ep >= l.ep || at.edp >= topology.expert_data_parallel()) ++wrong;
        if (topology.rank_of(at.tp, at.cp, at.dp, at.pp) != rank) ++wrong;
      }
    });
    CHECK_MESSAGE(wrong == 0, ranks, " ranks");
    CHECK(layouts > 0);
  }
}

TEST_CASE("groups are what the definition says") {
  for (const int ranks : {1, 2, 3, 4, 6, 8, 12, 16}) {
    long long wrong = 0;
    for_each_layout(ranks, [&](const Topology& topology) {
      for (const GroupKind kind : kGroupKinds) {
        for (int rank = 0; rank < ranks; ++rank) {
          if (topology.members(kind, rank) != members_by_search(topology, kind, rank)) ++wrong;
        }
      }
    });
    CHECK_MESSAGE(wrong == 0, ranks, " ranks");
  }
}

TEST_CASE("on 1,024 ranks every rank is in exactly one group of each kind") {
  const Layout layouts[] = {{.tp = 1, .cp = 1, .dp = 0, .pp = 1, .etp = 1, .ep = 1},
                            {.tp = 8, .cp = 2, .dp = 0, .pp = 4, .etp = 1, .ep = 64},
                            {.tp = 4, .cp = 1, .dp = 64, .pp = 4, .etp = 2, .ep = 8},
                            {.tp = 1, .cp = 1, .dp = 0, .pp = 8, .etp = 1, .ep = 128},
                            {.tp = 2, .cp = 4, .dp = 128, .pp = 1, .etp = 1024, .ep = 1}};
  for (const Layout& layout : layouts) {
    const Topology topology(layout, 1024);
    CAPTURE(topology.describe());
    const Layout& l = topology.layout();
    const int stage = l.tp * l.cp * l.dp;
    CHECK(stage * l.pp == 1024);
    CHECK(l.etp * l.ep * topology.expert_data_parallel() == stage);
    const int ends = std::min(l.pp, 2);
    const int sizes[] = {1024,        l.tp, l.cp,        l.dp,  l.pp, stage,
                         l.tp * l.cp, ends, l.cp * l.dp, l.etp, l.ep, topology.expert_data_parallel()};
    for (const GroupKind kind : kGroupKinds) {
      std::set<int> seen;
      for (int rank = 0; rank < 1024; ++rank) {
        const std::vector<int> members = topology.members(kind, rank);
        const int pp = topology.coordinates(rank).pp;
        const bool alone = kind == GroupKind::embedding && pp != 0 && pp != l.pp - 1;
        REQUIRE(static_cast<int>(members.size()) == (alone ? 1 : sizes[static_cast<int>(kind)]));
        CHECK(std::ranges::count(members, rank) == 1);
        if (members.front() != rank) continue;
        // The group's lowest rank: all members see the same group, and no other group has them.
        for (const int member : members) {
          CHECK(seen.insert(member).second);
          CHECK(topology.members(kind, member) == members);
        }
      }
      CHECK_MESSAGE(seen.size() == 1024, name(kind));
    }
  }
}

TEST_CASE("a layout is shown in one line") {
  CHECK(Topology({.ep = 2}, 4).describe() == "tp 1, cp 1, dp 4, pp 1; etp 1, ep 2, edp 2");
}

TEST_CASE("a layout that doesn't fit is refused with the numbers and what would fit") {
  CHECK(refusal({}, 7).empty());
  CHECK(refusal({.tp = 2, .pp = 2}, 6) ==
        "6 ranks are not divisible by parallel.tensor 2 * context 1 * pipeline 2 = 4: start 4 or 8 ranks");
  CHECK(refusal({.tp = 8}, 4) ==
        "parallel.tensor 8 * context 1 * pipeline 1 need more than the 4 ranks started: make one smaller");
  CHECK(refusal({.tp = 1 << 30, .cp = 1 << 30, .pp = 1 << 30}, 4).find("need more than the 4 ranks") !=
        std::string::npos);
  CHECK(refusal({.dp = 3}, 4) ==
        "parallel.data = 3 (* tensor 1 * context 1 * pipeline 1) needs 3 ranks and 4 were started: set it to 4, or "
        "start 3 ranks");
  CHECK(refusal({.ep = 3}, 4) ==
        "parallel.expert = 3 does not divide the 4 ranks of tensor * context * data / expert_tensor: the nearest is 2 "
        "or 4");
  CHECK(refusal({.ep = 5}, 4).ends_with("the nearest is 4"));
  CHECK(refusal({.pp = 4, .ep = 2}, 4)
            .ends_with("does not divide the 1 ranks of tensor * context * data / "
                       "expert_tensor: the nearest is 1"));
  CHECK(refusal({.etp = 4}, 6) ==
        "parallel.expert_tensor = 4 does not divide the 6 ranks of tensor * context * data: the nearest is 3 or 6");
  CHECK(refusal({.ep = 0}, 4) == "parallel.expert = 0: expected at least 1");
  CHECK(refusal({.dp = -1}, 4) == "parallel.data = -1: expected 0 (what the ranks leave) or more");
}
