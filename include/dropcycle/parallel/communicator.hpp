// Collectives. A communicator of one rank is a real object whose collectives do nothing but the local copy. Tensors lie
// in the memory of the groups' device: over MPI the host's, over NCCL a GPU's, where a call or a request's wait()
// returns as soon as the device's later work is ordered behind the result. Spans are the host's and travel over MPI.
// Every collective is declared beside its adjoint: all_reduce / identity, all_gather / reduce_scatter,
// all_to_all / all_to_all with the counts exchanged, send / receive. Sums only; 1/(global tokens) enters once, in the
// loss.
//
// All ranks of a group call the same collectives in the same order, from one thread. A sum has the same bits on all
// ranks and in every run of the same layout. An MPI failure throws Error{peer} that names group, call and rank. While
// an exception unwinds, nothing here waits for another rank. Over NCCL, where sums are said to run in the order of the
// ranks they run in an order of NCCL's own instead, the same for the same sizes and layout.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dropcycle/core/tensor.hpp"
#include "dropcycle/device/device.hpp"
#include "dropcycle/parallel/topology.hpp"
#include "dropcycle/parallel/traffic.hpp"

namespace dropcycle {

// A collective or message under way; its tensors stay alive and untouched until it is done. The destructor waits too.
class Request {
 public:
  virtual ~Request() = default;
  // Lets the transport make progress; true when done.
  virtual bool test() = 0;
  // Returns when the result is there.
  virtual void wait() = 0;
};

// Elements [first, first + count) of a flat array.
struct Piece {
  std::int64_t first = 0, count = 0;
};
// Rank r's piece of N elements on n ranks: [r c, min(N, (r+1) c)) with c = ceil(N / n), perhaps none.
constexpr Piece piece_of(std::int64_t elements, int rank, int ranks) {
  const std::int64_t count = (elements + ranks - 1) / ranks, first = std::min(elements, rank * count);
  return {first, std::min(count, elements - first)};
}

// Messages of one channel between two ranks arrive in the order in which they were sent.
enum class Channel { forward, backward };

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;

  // x = Σ over ranks of x, in place (f64, f32, i32). Adjoint: identity on each rank's gradient.
  virtual void all_reduce(const Tensor& x) = 0;
  // The same of a few numbers, as control traffic (traffic.hpp).
  virtual void sum(std::span<double> values) = 0;
  // In place, in pieces (piece_of): this rank's piece of x = Σ over ranks of that piece, added in the order of the
  // ranks, so that the bits depend neither on the size of x nor on what else is gathered or reduced (f64, f32, i32).
  // The other pieces stay what they are.
  virtual std::unique_ptr<Request> start_reduce_scatter(const Tensor& x) = 0;
  // In place, in pieces: every piece of x = what its rank holds. Any type.
  virtual std::unique_ptr<Request> start_all_gather(const Tensor& x) = 0;
  // start_reduce_scatter and start_all_gather, one after the other.
  virtual std::unique_ptr<Request> start_all_reduce(const Tensor& x) = 0;
  // values = greatest over ranks, in place; unspecified where a rank holds NaN. Control traffic.
  virtual void greatest(std::span<double> values) = 0;
  // out [size*N, ...] = the ranks' x [N, ...] one after another. Any type. Adjoint: reduce_scatter.
  virtual void all_gather(const Tensor& x, const Tensor& out) = 0;
  // out [N, ...] = this rank's part of Σ x [size*N, ...] (f64, f32, i32). Adjoint: all_gather.
  virtual void reduce_scatter(const Tensor& x, const Tensor& out) = 0;
  // The same with counts[r] rows of rank r, perhaps none: out [Σ counts, ...] = the ranks' x [counts[r], ...] one after
  // another. Any type. Adjoint: reduce_scatter of the same counts.
  virtual void all_gather(const Tensor& x, std::span<const std::int64_t> counts, const Tensor& out) = 0;
  // out [counts[rank], ...] = this rank's rows of Σ x [Σ counts, ...], added in the order of the ranks (f64, f32, i32);
  // x is used up. Adjoint: all_gather of the same counts.
  virtual void reduce_scatter(const Tensor& x, std::span<const std::int64_t> counts, const Tensor& out) = 0;
  // Rows: send[r] rows of x go to rank r, recv[r] rows of out come from rank r, both in rank order. Any type.
  // Adjoint: the same call with send and recv exchanged.
  virtual void all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                          std::span<const std::int64_t> recv) = 0;
  // The same while the caller computes: several may be under way and may end in any order; the counts are read before
  // the call returns.
  virtual std::unique_ptr<Request> start_all_to_all(const Tensor& x, std::span<const std::int64_t> send,
                                                    const Tensor& out, std::span<const std::int64_t> recv) = 0;
  // recv[r*n .. r*n+n) = rank r's send[this rank * n ..): n = send.size() / size values each way; for row counts.
  virtual void all_to_all_counts(std::span<const std::int64_t> send, std::span<std::int64_t> recv) = 0;
  // x goes to rank `to`, which receives it into a tensor of the same type and size: the n-th tensor sent on a channel
  // is the n-th received on it. Any type and size. Neither call waits, so ranks may send to each other at once.
  // Over NCCL only the pipeline's group has channels: forward to the next rank of its ring, backward to the one before.
  // Adjoint: the gradient goes back, with start_receive where x was sent and start_send where it was received.
  virtual std::unique_ptr<Request> start_send(const Tensor& x, int to, Channel channel) = 0;
  virtual std::unique_ptr<Request> start_receive(const Tensor& out, int from, Channel channel) = 0;
  // The same of a few numbers of the host, which have an order of their own beside the channel's tensors.
  virtual std::unique_ptr<Request> start_send(std::span<const double> values, int to, Channel channel) = 0;
  virtual std::unique_ptr<Request> start_receive(std::span<double> out, int from, Channel channel) = 0;
  // The host's data on every rank = data on `root`. Adjoint: the sum onto the root, which nothing here needs.
  virtual void broadcast(void* data, std::int64_t size_bytes, int root) = 0;
  // Every rank's text, in rank order, on every rank.
  virtual std::vector<std::string> all_gather_text(const std::string& text) = 0;
  virtual void barrier() = 0;

  // Bytes that this rank sent in this group so far.
  const Traffic& traffic() const { return traffic_; }

 protected:
  // One collective on a tensor of `bytes` bytes in all (traffic.hpp).
  void count(Collective kind, std::int64_t bytes) {
    traffic_[kind] += bytes_sent(kind, size(), static_cast<double>(bytes));
  }

 private:
  Traffic traffic_;
};

// A group of one: sums are the value itself, gathers and exchanges are copies (none where x and out are the same
// memory). Tensors are the device's.
std::unique_ptr<Communicator> local_communicator(std::string_view group, Device& device = host_device());
// See Groups::planned.
std::unique_ptr<Communicator> planned_communicator(std::string_view group, int rank, int size);

// Throws Error{peer} on every rank unless all ranks give the same text: names the first rank that differs from rank 0,
// its first differing line and both versions of it. `label` says what the text is: "config", "library versions".
void check_same_everywhere(Communicator& communicator, std::string_view label, const std::string& text);

// The communicators of all axes on this rank. Members are never null.
class Groups {
 public:
  // A process of one rank, without MPI.
  static Groups single(Device& device = host_device());
  // All groups over MPI_COMM_WORLD (MPI is initialised); collective. Tensors on a GPU travel over NCCL: one GPU a
  // process. The device outlives the groups.
  static Groups over_mpi(const Topology& topology, Device& device = host_device());
  // Groups that know their members and cannot speak to them: what a rank of a layout holds and sends can be asked
  // without starting it. Every collective throws Error{internal}.
  static Groups planned(const Topology& topology, int rank);
  Groups(Groups&&) noexcept;
  Groups& operator=(Groups&&) noexcept;
  ~Groups();

  const Topology& topology() const;
  const Coordinates& coordinates() const;
  Communicator& operator[](GroupKind kind) const;
  Communicator& world() const { return (*this)[GroupKind::world]; }
  // Bytes that this rank sent so far, by group.
  PerGroupKind<Traffic> traffic() const;

 private:
  struct State;
  explicit Groups(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle
