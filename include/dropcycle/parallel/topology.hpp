// Rank arithmetic of the process grid, without MPI.
//
//   rank = tp + TP*(cp + CP*(dp + DP*pp))                       dense grid, tp fastest, pp slowest
//   q = rank mod (TP*CP*DP);   q = etp + ETP*(ep + EP*edp)      expert grid on the same ranks
#pragma once

#include <string>
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
  dense_gradient,   // dp × cp: replicas of a dense parameter
  etp,              // same (ep, edp, pp)
  ep,               // same (etp, edp, pp)
  expert_gradient,  // edp: replicas of an expert's parameter
};

struct Coordinates {
  int tp, cp, dp, pp, etp, ep, edp;
};

class Topology {
 public:
  // Resolves dp and checks every divisibility. Throws Error{usage} with the numbers and the nearest valid choices.
  Topology(const Layout& layout, int world_size);

  int world_size() const { return world_size_; }
  const Layout& layout() const { return layout_; }  // dp resolved
  int expert_data_parallel() const { return edp_; }
  Coordinates coordinates(int rank) const;
  // Members of `rank`'s group, ascending; the rank itself is among them.
  std::vector<int> members(GroupKind kind, int rank) const;
  // "tp 1, cp 1, dp 2, pp 1; etp 1, ep 2, edp 1".
  std::string describe() const;

 private:
  Layout layout_;
  int world_size_, edp_;
};

}  // namespace dropcycle
