// Test runner under mpirun: the number of ranks is stated by the test's registration and must be what MPI gives.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

int main(int argc, char** argv) {
  int thread_level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &thread_level);
  int ranks = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--ranks") == 0 && std::atoi(argv[i + 1]) != ranks) {
      std::fprintf(stderr, "this test wants %s ranks and got %d\n", argv[i + 1], ranks);
      MPI_Abort(MPI_COMM_WORLD, 1);
    }
  }
  doctest::Context context(argc, argv);
  const int failed = context.run();
  int failed_anywhere = 0;
  MPI_Allreduce(&failed, &failed_anywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return failed_anywhere;
}
