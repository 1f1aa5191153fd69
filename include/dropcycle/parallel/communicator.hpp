// Collectives. A communicator of one rank is a real object whose collectives do nothing but the local copy.
// Every collective is declared beside its adjoint: all_reduce / identity, all_gather / reduce_scatter,
// all_to_all / all_to_all with the counts exchanged. Sums only; 1/(global tokens) enters once, in the loss.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/tensor.hpp"
#include "dropcycle/parallel/topology.hpp"

namespace dropcycle {

// A collective under way. wait() returns when the result is there; the destructor waits too.
class Request {
 public:
  virtual ~Request() = default;
  // Lets the transport make progress; true when done.
  virtual bool test() = 0;
  virtual void wait() = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;

  // x = Σ over ranks of x, in place (f64, f32, i32). Adjoint: identity on each rank's gradient.
  virtual void all_reduce(const Tensor& x) = 0;
  virtual std::unique_ptr<Request> start_all_reduce(const Tensor& x) = 0;
  // Greatest / least over ranks, in place, for control values.
  virtual void all_reduce_max(const Tensor& x) = 0;
  // out [size*N, ...] = the ranks' x [N, ...] one after another. Adjoint: reduce_scatter.
  virtual void all_gather(const Tensor& x, const Tensor& out) = 0;
  // out [N, ...] = this rank's part of Σ x [size*N, ...]. Adjoint: all_gather.
  virtual void reduce_scatter(const Tensor& x, const Tensor& out) = 0;
  // Rows: send[r] rows of x go to rank r, recv[r] rows of out come from rank r, both in rank order. Any type.
  // Adjoint: the same call with send and recv exchanged.
  virtual void all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                          std::span<const std::int64_t> recv) = 0;
  // out[r*n .. ] from rank r: n values each way; used for the row counts.
  virtual void all_to_all_counts(std::span<const std::int64_t> send, std::span<std::int64_t> recv) = 0;
  virtual void broadcast(void* data, std::int64_t size_bytes, int root) = 0;
  // Every rank's text, in rank order, on every rank.
  virtual std::vector<std::string> all_gather_text(const std::string& text) = 0;
  virtual void barrier() = 0;
};

// The communicators of all axes on this rank. Members are never null.
class Groups {
 public:
  // A process of one rank, without MPI.
  static Groups single();
  // All groups over MPI_COMM_WORLD (MPI is initialised).
  static Groups over_mpi(const Topology& topology);
  Groups(Groups&&) noexcept;
  Groups& operator=(Groups&&) noexcept;
  ~Groups();

  const Topology& topology() const;
  const Coordinates& coordinates() const;
  Communicator& operator[](GroupKind kind) const;
  Communicator& world() const { return (*this)[GroupKind::world]; }

 private:
  struct State;
  explicit Groups(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Starts MPI for the life of the object when the process was started by mpirun or srun (or finds MPI started), else
// stays a single process without MPI. On destruction while an exception unwinds, aborts all ranks.
class Runtime {
 public:
  Runtime(int* argc, char*** argv);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  int rank() const { return rank_; }
  int size() const { return size_; }
  // Ranks on this node.
  int local_size() const { return local_size_; }
  Groups groups(const Layout& layout) const;
  // Ends all ranks with `status` after one line on standard error.
  [[noreturn]] void abort(int status) const;

 private:
  int rank_ = 0, size_ = 1, local_size_ = 1;
  bool owns_mpi_ = false;
};

}  // namespace dropcycle
