// Communicators over MPI, for the .cpp files of this folder.
#pragma once

#include <mpi.h>

#include <memory>
#include <string_view>
#include <utility>

#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// Owner of an MPI_Comm, freed at death and therefore before MPI_Finalize. Freeing a communicator may wait for its
// other ranks, so while an exception unwinds it is left to the abort that follows.
class CommHandle {
 public:
  explicit CommHandle(MPI_Comm comm) : comm_(comm) {}
  CommHandle(CommHandle&& other) noexcept : comm_(std::exchange(other.comm_, MPI_COMM_NULL)) {}
  CommHandle& operator=(CommHandle&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  ~CommHandle();
  MPI_Comm get() const { return comm_; }

 private:
  MPI_Comm comm_;
};

// Takes the communicator over and makes MPI report its errors instead of ending the process.
std::unique_ptr<Communicator> mpi_communicator(std::string_view group, CommHandle comm);

// Throws Error{peer} that names group, call and rank unless code is MPI_SUCCESS.
void check_mpi(int code, std::string_view group, int rank, const char* call);

}  // namespace dropcycle
