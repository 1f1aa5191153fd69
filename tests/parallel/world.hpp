// How many ranks a test runs on.
#pragma once

#include <mpi.h>

namespace dropcycle::test {

inline int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

}  // namespace dropcycle::test
