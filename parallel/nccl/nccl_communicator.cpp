#include "nccl_communicator.hpp"

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "../checks.hpp"
#include "dropcycle/core/profile.hpp"

namespace dropcycle {
namespace {

ncclDataType_t summable_type(const Tensor& x) {
  check_summable(x);
  return x.dtype == DType::f64 ? ncclFloat64 : x.dtype == DType::f32 ? ncclFloat32 : ncclInt32;
}

std::byte* at(const Tensor& x, std::int64_t element) {
  return static_cast<std::byte*>(x.data) + element * size_bytes(x.dtype);
}

std::size_t count_of(std::int64_t elements) { return static_cast<std::size_t>(elements); }

// Events that are not in use.
using Events = std::vector<CudaEvent>;

// Work on a stream of its own, begun behind what the device had been asked for.
class NcclRequest final : public Request {
 public:
  NcclRequest(cudaStream_t device, std::shared_ptr<Events> spare) : device_(device), spare_(std::move(spare)) {
    if (spare_->empty()) spare_->emplace_back();
    event_ = std::move(spare_->back());
    spare_->pop_back();
  }
  NcclRequest(const NcclRequest&) = delete;
  NcclRequest& operator=(const NcclRequest&) = delete;
  ~NcclRequest() override {
    if (std::uncaught_exceptions() > 0) return;
    if (!ordered_) cudaStreamWaitEvent(device_, event_->get(), 0);
    spare_->push_back(std::move(*event_));
  }
  template <class F>
  void run(cudaStream_t stream, F&& enqueue) {
    event_->record(device_);
    event_->make_wait(stream);
    enqueue(stream);
    event_->record(stream);
  }
  bool test() override { return event_->reached(); }
  void wait() override {
    if (std::exchange(ordered_, true)) return;
    event_->make_wait(device_);
  }

 private:
  cudaStream_t device_;
  std::shared_ptr<Events> spare_;
  std::optional<CudaEvent> event_;
  bool ordered_ = false;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> control, NcclHandle comm, NcclChannels channels, CudaDevice& device)
      : control_(std::move(control)),
        comm_(std::move(comm)),
        channels_(std::move(channels)),
        device_(device),
        rank_(control_->rank()),
        size_(control_->size()) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return control_->name(); }

  // What the host holds.
  void sum(std::span<double> values) override { control_->sum(values); }
  void greatest(std::span<double> values) override { control_->greatest(values); }
  void all_to_all_counts(std::span<const std::int64_t> send, std::span<std::int64_t> recv) override {
    control_->all_to_all_counts(send, recv);
  }
  std::unique_ptr<Request> start_send(std::span<const double> values, int to, Channel channel) override {
    count(Collective::send, static_cast<std::int64_t>(values.size_bytes()));
    return control_->start_send(values, to, channel);
  }
  std::unique_ptr<Request> start_receive(std::span<double> out, int from, Channel channel) override {
    return control_->start_receive(out, from, channel);
  }
  void broadcast(void* data, std::int64_t size_bytes, int root) override {
    control_->broadcast(data, size_bytes, root);
  }
  std::vector<std::string> all_gather_text(const std::string& text) override { return control_->all_gather_text(text); }
  void barrier() override { control_->barrier(); }

  void all_reduce(const Tensor& x) override {
    const Span span(SpanKind::communication, "all_reduce");
    count(Collective::all_reduce, x.bytes());
    const ncclDataType_t type = summable_type(x);
    if (x.elements() == 0) return;
    check(ncclAllReduce(x.data, x.data, count_of(x.elements()), type, ncclSum, comm_.get(), device_.stream()),
          "all_reduce");
  }

  std::unique_ptr<Request> start_reduce_scatter(const Tensor& x) override {
    count(Collective::reduce_scatter, x.bytes());
    return start([&](cudaStream_t stream) { reduce_pieces(x, stream); });
  }
  std::unique_ptr<Request> start_all_gather(const Tensor& x) override {
    count(Collective::all_gather, x.bytes());
    return start([&](cudaStream_t stream) { gather_pieces(x, stream); });
  }
  std::unique_ptr<Request> start_all_reduce(const Tensor& x) override {
    count(Collective::all_reduce, x.bytes());
    return start([&](cudaStream_t stream) {
      reduce_pieces(x, stream);
      gather_pieces(x, stream);
    });
  }

  void all_gather(const Tensor& x, const Tensor& out) override {
    const Span span(SpanKind::communication, "all_gather");
    check_even(place(), x, out, "all_gather");
    if (x.elements() == 0) return;
    count(Collective::all_gather, out.bytes());
    check(ncclAllGather(x.data, out.data, count_of(x.bytes()), ncclUint8, comm_.get(), device_.stream()), "all_gather");
  }

  void reduce_scatter(const Tensor& x, const Tensor& out) override {
    const Span span(SpanKind::communication, "reduce_scatter");
    check_even(place(), out, x, "reduce_scatter");
    count(Collective::reduce_scatter, x.bytes());
    const ncclDataType_t type = summable_type(x);
    if (out.elements() == 0) return;
    check(ncclReduceScatter(x.data, out.data, count_of(out.elements()), type, ncclSum, comm_.get(), device_.stream()),
          "reduce_scatter");
  }

  void all_gather(const Tensor& x, std::span<const std::int64_t> counts, const Tensor& out) override {
    const Span span(SpanKind::communication, "all_gather");
    check_rows(place(), x, counts, out, "all_gather");
    count(Collective::all_gather, out.bytes());
    broadcast_pieces(x.data, pieces_of(counts, bytes_of_row(place(), x)), static_cast<std::byte*>(out.data),
                     device_.stream());
  }

  void reduce_scatter(const Tensor& x, std::span<const std::int64_t> counts, const Tensor& out) override {
    const Span span(SpanKind::communication, "reduce_scatter");
    check_rows(place(), out, counts, x, "reduce_scatter");
    count(Collective::reduce_scatter, x.bytes());
    const std::int64_t width = bytes_of_row(place(), x) / size_bytes(x.dtype);
    sum_pieces(x, pieces_of(counts, width), out.data, device_.stream());
  }

  void all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                  std::span<const std::int64_t> recv) override {
    const Span span(SpanKind::communication, "all_to_all");
    exchange(x, send, out, recv, checked_row_bytes(x, send, out, recv), device_.stream());
  }

  std::unique_ptr<Request> start_all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                                            std::span<const std::int64_t> recv) override {
    const std::int64_t row_bytes = checked_row_bytes(x, send, out, recv);
    return start([&](cudaStream_t stream) { exchange(x, send, out, recv, row_bytes, stream); });
  }

  std::unique_ptr<Request> start_send(const Tensor& x, int to, Channel channel) override {
    const NcclFlow& flow = flow_to(to, channel, true, "start_send");
    count(Collective::send, x.bytes());
    return run_on(flow.stream.get(), [&](cudaStream_t stream) {
      if (x.bytes() == 0) return;
      check(ncclSend(x.data, count_of(x.bytes()), ncclUint8, flow.peer, flow.comm.get(), stream), "start_send");
    });
  }

  std::unique_ptr<Request> start_receive(const Tensor& out, int from, Channel channel) override {
    const NcclFlow& flow = flow_to(from, channel, false, "start_receive");
    return run_on(flow.stream.get(), [&](cudaStream_t stream) {
      if (out.bytes() == 0) return;
      check(ncclRecv(out.data, count_of(out.bytes()), ncclUint8, flow.peer, flow.comm.get(), stream), "start_receive");
    });
  }

 private:
  GroupPlace place() const { return {name(), rank_, size_}; }
  void check(ncclResult_t result, const char* call) const { check_nccl(result, name(), rank_, call); }

  // Several calls as one operation.
  template <class F>
  void grouped(const char* call, F&& calls) const {
    check(ncclGroupStart(), call);
    calls();
    check(ncclGroupEnd(), call);
  }

  template <class F>
  std::unique_ptr<Request> run_on(cudaStream_t stream, F&& enqueue) {
    const Span span(SpanKind::communication, "start");
    auto request = std::make_unique<NcclRequest>(device_.stream(), spare_events_);
    request->run(stream, enqueue);
    return request;
  }
  template <class F>
  std::unique_ptr<Request> start(F&& enqueue) {
    if (!own_stream_) own_stream_.emplace(CudaStream::Priority::high);
    return run_on(own_stream_->get(), enqueue);
  }

  // `pieces` in elements of x; the sum of this rank's piece goes to `out`.
  void sum_pieces(const Tensor& x, const std::vector<Piece>& pieces, void* out, cudaStream_t stream) const {
    const ncclDataType_t type = summable_type(x);
    grouped("reduce_scatter", [&] {
      for (int r = 0; r < size_; ++r) {
        const Piece& piece = pieces[static_cast<std::size_t>(r)];
        if (piece.count == 0) continue;
        std::byte* const from = at(x, piece.first);
        check(ncclReduce(from, r == rank_ ? out : from, count_of(piece.count), type, ncclSum, r, comm_.get(), stream),
              "reduce_scatter");
      }
    });
  }
  // `pieces` in bytes of out; this rank's is at `own`.
  void broadcast_pieces(const void* own, const std::vector<Piece>& pieces, std::byte* out, cudaStream_t stream) const {
    grouped("all_gather", [&] {
      for (int r = 0; r < size_; ++r) {
        const Piece& piece = pieces[static_cast<std::size_t>(r)];
        if (piece.count == 0) continue;
        std::byte* const to = out + piece.first;
        check(ncclBroadcast(r == rank_ ? own : to, to, count_of(piece.count), ncclUint8, r, comm_.get(), stream),
              "all_gather");
      }
    });
  }

  // In place, in even pieces. One call of NCCL's where they are equal.
  void reduce_pieces(const Tensor& x, cudaStream_t stream) const {
    if (x.elements() == 0) return;
    const Piece own = piece_of(x.elements(), rank_, size_);
    if (x.elements() % size_ != 0) {
      return sum_pieces(x, even_pieces(x.elements(), size_), at(x, own.first), stream);
    }
    check(ncclReduceScatter(x.data, at(x, own.first), count_of(own.count), summable_type(x), ncclSum, comm_.get(),
                            stream),
          "reduce_scatter");
  }
  void gather_pieces(const Tensor& x, cudaStream_t stream) const {
    if (x.elements() == 0) return;
    const std::int64_t element = size_bytes(x.dtype);
    const Piece own = piece_of(x.elements(), rank_, size_);
    if (x.elements() % size_ != 0) {
      std::vector<Piece> pieces = even_pieces(x.elements(), size_);
      for (Piece& piece : pieces) piece = {piece.first * element, piece.count * element};
      return broadcast_pieces(at(x, own.first), pieces, static_cast<std::byte*>(x.data), stream);
    }
    check(ncclAllGather(at(x, own.first), x.data, count_of(own.count * element), ncclUint8, comm_.get(), stream),
          "all_gather");
  }

  std::int64_t checked_row_bytes(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                                 std::span<const std::int64_t> recv) {
    const std::int64_t row_bytes = check_exchange(place(), x, send, out, recv);
    std::int64_t leaving = 0;
    for (int r = 0; r < size_; ++r) leaving += r == rank_ ? 0 : send[static_cast<std::size_t>(r)];
    count(Collective::all_to_all, leaving * row_bytes);
    return row_bytes;
  }

  // No rows: no call, on both sides alike. A rank's own rows are copied.
  void exchange(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                std::span<const std::int64_t> recv, std::int64_t row_bytes, cudaStream_t stream) const {
    const std::vector<Piece> sent = pieces_of(send, row_bytes), received = pieces_of(recv, row_bytes);
    const auto place_of = [](const Tensor& tensor, const Piece& piece) {
      return static_cast<std::byte*>(tensor.data) + piece.first;
    };
    grouped("all_to_all", [&] {
      for (int step = 1; step < size_; ++step) {
        const int to = (rank_ + step) % size_, from = (rank_ + size_ - step) % size_;
        if (const Piece& piece = sent[static_cast<std::size_t>(to)]; piece.count > 0) {
          check(ncclSend(place_of(x, piece), count_of(piece.count), ncclUint8, to, comm_.get(), stream), "all_to_all");
        }
        if (const Piece& piece = received[static_cast<std::size_t>(from)]; piece.count > 0) {
          check(ncclRecv(place_of(out, piece), count_of(piece.count), ncclUint8, from, comm_.get(), stream),
                "all_to_all");
        }
      }
    });
    const auto own = static_cast<std::size_t>(rank_);
    if (sent[own].count == 0) return;
    check_cuda(cudaMemcpyAsync(place_of(out, received[own]), place_of(x, sent[own]), count_of(sent[own].count),
                               cudaMemcpyDeviceToDevice, stream),
               "cudaMemcpyAsync");
  }

  const NcclFlow& flow_to(int peer, Channel channel, bool sends, const char* call) const {
    check_peer(place(), peer, call);
    const bool forward = channel == Channel::forward;
    const NcclChannels::Ends& ends = forward ? channels_.forward : channels_.backward;
    const NcclFlow* const flow = (sends ? ends.send : ends.receive).get();
    const int next = (rank_ + 1) % size_, before = (rank_ + size_ - 1) % size_;
    require(flow != nullptr && peer == (forward == sends ? next : before),
            "group {}: {} between rank {} and {} on the {} channel: expected neighbours of a pipeline", name(), call,
            rank_, peer, forward ? "forward" : "backward");
    return *flow;
  }

  std::unique_ptr<Communicator> control_;
  NcclHandle comm_;
  NcclChannels channels_;
  CudaDevice& device_;
  int rank_, size_;
  std::optional<CudaStream> own_stream_;
  std::shared_ptr<Events> spare_events_ = std::make_shared<Events>();
};

}  // namespace

std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> control, NcclHandle comm,
                                                NcclChannels channels, CudaDevice& device) {
  return std::make_unique<NcclCommunicator>(std::move(control), std::move(comm), std::move(channels), device);
}

}  // namespace dropcycle
