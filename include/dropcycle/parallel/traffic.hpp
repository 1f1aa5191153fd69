// Counted bytes: what a rank sends in each kind of collective, by the ring algorithms' volumes (Shoeybi et al., 2019;
// Rajbhandari et al., 2020), for n ranks and N bytes of the whole tensor:
//
//   all_reduce 2 (n-1)/n N;  all_gather, reduce_scatter (n-1)/n N;  all_to_all: what leaves the rank;  send: N
//
// Control traffic is not counted: counts of rows, single numbers (sum, maximum), texts, broadcasts, barriers.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace dropcycle {

enum class Collective { all_reduce, all_gather, reduce_scatter, all_to_all, send };
inline constexpr std::array<Collective, 5> kCollectives = {Collective::all_reduce, Collective::all_gather,
                                                           Collective::reduce_scatter, Collective::all_to_all,
                                                           Collective::send};
// "all_reduce", ..., "send".
std::string_view name(Collective collective);

// Bytes by kind.
class Traffic {
 public:
  double& operator[](Collective kind) { return bytes_[static_cast<std::size_t>(kind)]; }
  double operator[](Collective kind) const { return bytes_[static_cast<std::size_t>(kind)]; }
  double total() const;
  Traffic& operator+=(const Traffic& other);
  Traffic& operator-=(const Traffic& other);

 private:
  std::array<double, kCollectives.size()> bytes_{};
};

// Bytes that a rank sends in one collective over n ranks; `bytes` N as above.
double bytes_sent(Collective kind, int ranks, double bytes);

}  // namespace dropcycle
