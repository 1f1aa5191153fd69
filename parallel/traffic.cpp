#include "dropcycle/parallel/traffic.hpp"

namespace dropcycle {

std::string_view name(Collective collective) {
  switch (collective) {
    case Collective::all_reduce:
      return "all_reduce";
    case Collective::all_gather:
      return "all_gather";
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::all_to_all:
      return "all_to_all";
    case Collective::send:
      return "send";
  }
  return "unknown";
}

double Traffic::total() const {
  double sum = 0;
  for (const double bytes : bytes_) sum += bytes;
  return sum;
}

Traffic& Traffic::operator+=(const Traffic& other) {
  for (const Collective kind : kCollectives) (*this)[kind] += other[kind];
  return *this;
}

Traffic& Traffic::operator-=(const Traffic& other) {
  for (const Collective kind : kCollectives) (*this)[kind] -= other[kind];
  return *this;
}

double bytes_sent(Collective kind, int ranks, double bytes) {
  const double share = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  switch (kind) {
    case Collective::all_reduce:
      return 2 * share * bytes;
    case Collective::all_gather:
    case Collective::reduce_scatter:
      return share * bytes;
    case Collective::all_to_all:
    case Collective::send:
      return bytes;
  }
  return 0;
}

}  // namespace dropcycle
