// The life of MPI in this process.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "dropcycle/core/error.hpp"
#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// Starts MPI for the life of the object when mpirun or srun started the process (or finds MPI started), else stays a
// single process without MPI, which starts faster. Groups must die before it. main() reads:
//
//   Runtime runtime(&argc, &argv);
//   try { return run(runtime); } catch (const Error& error) { runtime.abort(error.status(), error.what()); }
class Runtime {
 public:
  // Throws Error{usage} if the launcher started several tasks that MPI cannot see as one job.
  Runtime(int* argc, char*** argv);
  // Ends MPI. While an exception unwinds with other ranks alive, ends all ranks instead.
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  int rank() const { return rank_; }
  int size() const { return size_; }
  // This process's place among the ranks on this node, and their number.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  const std::string& host() const { return host_; }
  // "rank 1 of 4 on node7: ", or nothing for a single process.
  std::string prefix() const;
  // Collective. Throws Error{usage} if the layout doesn't fit the ranks.
  Groups groups(const Layout& layout, Device& device = host_device()) const;
  // Ends all ranks with `status` (which isn't ok) after one line on standard error:
  // "dropcycle: error: rank 1 of 4 on node7: <message>". Where several ranks fail alike, one rank of a node speaks.
  [[noreturn]] void abort(Status status, std::string_view message) const;
  // For errors before MPI starts (a wrong option, which all ranks see alike): ranks other than 0 wait here until the
  // launcher ends them because rank 0 failed, so that one rank speaks.
  static void let_rank_0_speak();

 private:
  struct FailureBoard;  // shared by the ranks of a node
  std::unique_ptr<FailureBoard> board_;
  std::string host_;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  int exceptions_at_start_ = 0;
  bool uses_mpi_ = false, owns_mpi_ = false;
};

}  // namespace dropcycle
