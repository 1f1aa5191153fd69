// Rank arithmetic of the process grid, without MPI.
//
//   rank = tp + TP*(cp + CP*(dp + DP*pp))                       dense grid, tp fastest, pp slowest
//   q = rank mod (TP*CP*DP);   q = etp + ETP*(ep + EP*edp)      expert grid on the same ranks
//
// A pipeline stage (one pp) is TP*CP*DP ranks; both grids divide the same stage, so ETP*EP*EDP = TP*CP*DP.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace dropcycle {

// Sizes of the axes. dp = 0 means: what the ranks leave. Expert data parallelism follows: EDP = TP*CP*DP/(ETP*EP).
struct Layout {
  int tp = 1, cp = 1, dp = 0, pp = 1;
  int etp = 1, ep = 1;
};

// The sets of ranks that communicate.
enum class GroupKind {
  world,
  tp,               // same (cp, dp, pp)
  cp,               // same (tp, dp, pp)
  dp,               // same (tp, cp, pp)
  pp,               // same (tp, cp, dp)
  stage,            // same pp, tp × cp × dp: replicas of a parameter that every rank of a stage holds whole
  sequence,         // same (dp, pp), tp × cp: ranks that share the sequences of a microbatch
  embedding,        // same (tp, cp, dp), first and last pp: ranks of tied embeddings; any other rank is alone
  dense_gradient,   // same (tp, pp), dp × cp: replicas of a dense parameter
  etp,              // same (ep, edp, pp)
  ep,               // same (etp, edp, pp)
  expert_gradient,  // same (etp, ep, pp), edp: replicas of an expert's parameter
};
inline constexpr std::array<GroupKind, 12> kGroupKinds = {
    GroupKind::world,    GroupKind::tp,        GroupKind::cp,
    GroupKind::dp,       GroupKind::pp,        GroupKind::stage,
    GroupKind::sequence, GroupKind::embedding, GroupKind::dense_gradient,
    GroupKind::etp,      GroupKind::ep,        GroupKind::expert_gradient};
// "world", "tp", ..., "expert_gradient".
std::string_view name(GroupKind kind);

// One value for each kind of group.
template <class T>
class PerGroupKind {
 public:
  T& operator[](GroupKind kind) { return values_[static_cast<std::size_t>(kind)]; }
  const T& operator[](GroupKind kind) const { return values_[static_cast<std::size_t>(kind)]; }

 private:
  std::array<T, kGroupKinds.size()> values_{};
};

struct Coordinates {
  int tp, cp, dp, pp, etp, ep, edp;
  bool operator==(const Coordinates&) const = default;
};

class Topology {
 public:
  // Resolves dp and checks every divisibility: TP*CP*PP divides the ranks, TP*CP*DP*PP equals them, ETP*EP divides
  // TP*CP*DP. Throws Error{usage} with the numbers and the nearest valid choices.
  Topology(const Layout& layout, int world_size);

  int world_size() const { return world_size_; }
  const Layout& layout() const { return layout_; }  // dp resolved
  int expert_data_parallel() const { return edp_; }
  // Ranks of one pipeline stage: TP*CP*DP = ETP*EP*EDP.
  int stage_size() const { return layout_.tp * layout_.cp * layout_.dp; }
  // Both throw Error{internal} for a rank or a coordinate outside the grid.
  Coordinates coordinates(int rank) const;
  // The inverse of coordinates() on the dense grid.
  int rank_of(int tp, int cp, int dp, int pp) const;
  // Members of `rank`'s group, ascending; the rank itself is among them.
  std::vector<int> members(GroupKind kind, int rank) const;
  // Of rank 0's group: of every group, but for `embedding`, where a rank between first and last stage is alone.
  int group_size(GroupKind kind) const;
  // "tp 1, cp 1, dp 2, pp 1; etp 1, ep 2, edp 1".
  std::string describe() const;

 private:
  Layout layout_;
  int world_size_, edp_;
};

}  // namespace dropcycle
