// Ranks that call different collectives; runtime_test.py looks at what the checker says.
#include <mpi.h>

#include <cstring>

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const char* mode = argc > 1 ? argv[1] : "";
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const bool odd = rank == 1;
  double x[4] = {}, y[4] = {};
  if (std::strcmp(mode, "operation") == 0 && odd) {
    MPI_Bcast(x, 2, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  } else if (std::strcmp(mode, "type") == 0 && odd) {
    MPI_Allreduce(x, y, 2, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  } else if (std::strcmp(mode, "count") == 0 && odd) {
    MPI_Allreduce(x, y, 3, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  } else {
    MPI_Allreduce(x, y, 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  }
  const int one[] = {1, 1}, first[] = {0, 1}, two[] = {2, 2}, second[] = {0, 2};
  const bool more = std::strcmp(mode, "rows") == 0 && odd;
  MPI_Alltoallv(x, one, first, MPI_DOUBLE, y, more ? two : one, more ? second : first, MPI_DOUBLE, MPI_COMM_WORLD);
  // A message from rank 0 to rank 1, of the awaited two doubles but in mode "message"; not awaited in "unreceived".
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  MPI_Comm_set_name(comm, "pp");
  MPI_Request request = MPI_REQUEST_NULL;
  const bool unreceived = std::strcmp(mode, "unreceived") == 0;
  if (rank == 0) {
    MPI_Isend(x, std::strcmp(mode, "message") == 0 ? 1 : 2, MPI_DOUBLE, 1, 0, comm, &request);
    MPI_Waitall(1, &request, MPI_STATUSES_IGNORE);
  } else if (!unreceived) {
    MPI_Irecv(y, 2, MPI_DOUBLE, 0, 0, comm, &request);
    MPI_Waitall(1, &request, MPI_STATUSES_IGNORE);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Comm_free(&comm);
  MPI_Finalize();
}
