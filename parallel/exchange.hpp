// Sums and gathers under way, made of messages between all pairs of ranks, for the .cpp files of this folder. Messages
// carry the number of their exchange, so that exchanges may end in any order, and unlike MPI's own reductions the sum
// runs over the ranks in their order whatever the size.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// Memory for what arrives, kept from exchange to exchange.
class SpareBuffers {
 public:
  Buffer take(std::int64_t size_bytes);
  void give_back(Buffer buffer);

 private:
  std::vector<Buffer> buffers_;
};

struct Exchange {
  MPI_Comm comm;
  std::string group;
  int rank, size;
  int tag;  // and tag + 1
  SpareBuffers& spare;
};

// x in pieces, one a rank: with `reduce` each rank's own piece becomes the sum over the ranks, added in rank order;
// with `gather` every piece then becomes what its rank holds.
std::unique_ptr<Request> start_exchange(const Exchange& exchange, const Tensor& x, std::vector<Piece> pieces,
                                        bool reduce, bool gather);

}  // namespace dropcycle
