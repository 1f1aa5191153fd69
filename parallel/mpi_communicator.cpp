#include "mpi_communicator.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>

#include "checks.hpp"
#include "dropcycle/core/profile.hpp"
#include "exchange.hpp"

namespace dropcycle {
namespace {

constexpr std::int64_t kMaxCount = std::numeric_limits<int>::max();
constexpr int kChannels = 2;  // tags of messages: tensors by channel, then numbers by channel
constexpr std::int64_t kChunkElements = std::int64_t{1} << 28;  // of a collective or message cut into several calls

MPI_Datatype summable_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return MPI_DOUBLE;
    case DType::f32:
      return MPI_FLOAT;
    case DType::i32:
      return MPI_INT32_T;
    case DType::bf16:
    case DType::f16:
    case DType::i16:
      break;
  }
  fail(Status::internal, "a reduction of {}: expected f64, f32 or i32", name(dtype));
}

void* element(const Tensor& x, std::int64_t index) {
  return static_cast<std::byte*>(x.data) + index * size_bytes(x.dtype);
}

// call(first, count) for pieces that fit one MPI call each.
template <class F>
void for_each_chunk(std::int64_t elements, F&& call) {
  for (std::int64_t first = 0; first < elements; first += kChunkElements) {
    call(first, static_cast<int>(std::min(kChunkElements, elements - first)));
  }
}

// `bytes` bytes as one MPI element, so that MPI's int counts count rows.
class RowType {
 public:
  explicit RowType(int bytes) {
    MPI_Type_contiguous(bytes, MPI_BYTE, &type_);
    MPI_Type_commit(&type_);
  }
  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;
  ~RowType() { MPI_Type_free(&type_); }
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

class MpiRequest final : public Request {
 public:
  MpiRequest(std::string_view group, int rank, const char* call) : group_(group), rank_(rank), call_(call) {}
  MpiRequest(const MpiRequest&) = delete;
  MpiRequest& operator=(const MpiRequest&) = delete;
  ~MpiRequest() override {
    if (std::uncaught_exceptions() == 0) MPI_Waitall(count(), requests_.data(), MPI_STATUSES_IGNORE);
  }
  bool test() override {
    int done = 0;
    check_mpi(MPI_Testall(count(), requests_.data(), &done, MPI_STATUSES_IGNORE), group_, rank_, call_);
    return done != 0;
  }
  void wait() override {
    const Span span(SpanKind::waiting, call_);
    check_mpi(MPI_Waitall(count(), requests_.data(), MPI_STATUSES_IGNORE), group_, rank_, call_);
  }
  MPI_Request* add() { return &requests_.emplace_back(MPI_REQUEST_NULL); }

 private:
  int count() const { return static_cast<int>(requests_.size()); }
  std::vector<MPI_Request> requests_;
  std::string group_;
  int rank_;
  const char* call_;
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(std::string_view group, CommHandle comm) : name_(group), comm_(std::move(comm)) {
    MPI_Comm_set_errhandler(comm_.get(), MPI_ERRORS_RETURN);
    MPI_Comm_set_name(comm_.get(), name_.c_str());
    check(MPI_Comm_rank(comm_.get(), &rank_), "start");
    check(MPI_Comm_size(comm_.get(), &size_), "start");
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  void all_reduce(const Tensor& x) override {
    count(Collective::all_reduce, x.bytes());
    reduce(x, MPI_SUM, "all_reduce");
  }
  void sum(std::span<double> values) override {
    reduce(Tensor(values.data(), Shape{std::ssize(values)}), MPI_SUM, "sum");
  }
  void greatest(std::span<double> values) override {
    reduce(Tensor(values.data(), Shape{std::ssize(values)}), MPI_MAX, "greatest");
  }

  std::unique_ptr<Request> start_reduce_scatter(const Tensor& x) override {
    count(Collective::reduce_scatter, x.bytes());
    return start_exchange(next_exchange(), x, even_pieces(x.elements(), size_), true, false);
  }
  std::unique_ptr<Request> start_all_gather(const Tensor& x) override {
    count(Collective::all_gather, x.bytes());
    return start_exchange(next_exchange(), x, even_pieces(x.elements(), size_), false, true);
  }
  std::unique_ptr<Request> start_all_reduce(const Tensor& x) override {
    count(Collective::all_reduce, x.bytes());
    return start_exchange(next_exchange(), x, even_pieces(x.elements(), size_), true, true);
  }

  void all_gather(const Tensor& x, const Tensor& out) override {
    const Span span(SpanKind::communication, "all_gather");
    check_even(place(), x, out, "all_gather");
    if (x.elements() == 0) return;
    count(Collective::all_gather, out.bytes());
    const std::int64_t rows = x.shape.dims() == 0 ? 1 : x.shape[0];
    const RowType row(as_count(x.bytes() / rows, "all_gather"));
    const int row_count = as_count(rows, "all_gather");
    check(MPI_Allgather(x.data, row_count, row.get(), out.data, row_count, row.get(), comm_.get()), "all_gather");
  }

  void reduce_scatter(const Tensor& x, const Tensor& out) override {
    const Span span(SpanKind::communication, "reduce_scatter");
    check_even(place(), out, x, "reduce_scatter");
    count(Collective::reduce_scatter, x.bytes());
    const int elements = as_count(out.elements(), "reduce_scatter");
    check(MPI_Reduce_scatter_block(x.data, out.data, elements, summable_type(x.dtype), MPI_SUM, comm_.get()),
          "reduce_scatter");
  }

  void all_gather(const Tensor& x, std::span<const std::int64_t> counts, const Tensor& out) override {
    const Span span(SpanKind::communication, "all_gather");
    check_rows(place(), x, counts, out, "all_gather");
    count(Collective::all_gather, out.bytes());
    const Counts gathered = as_counts(counts, "all_gather");
    const RowType row(as_count(bytes_of_row(place(), x), "all_gather"));
    check(MPI_Allgatherv(x.data, gathered.rows[static_cast<std::size_t>(rank_)], row.get(), out.data,
                         gathered.rows.data(), gathered.first.data(), row.get(), comm_.get()),
          "all_gather");
  }

  void reduce_scatter(const Tensor& x, std::span<const std::int64_t> counts, const Tensor& out) override {
    const Span span(SpanKind::communication, "reduce_scatter");
    check_rows(place(), out, counts, x, "reduce_scatter");
    count(Collective::reduce_scatter, x.bytes());
    const std::vector<Piece> pieces = pieces_of(counts, bytes_of_row(place(), x) / size_bytes(x.dtype));
    start_exchange(next_exchange(), x, pieces, true, false)->wait();
    if (out.bytes() == 0) return;
    std::memcpy(out.data, element(x, pieces[static_cast<std::size_t>(rank_)].first),
                static_cast<std::size_t>(out.bytes()));
  }

  void all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                  std::span<const std::int64_t> recv) override {
    const Span span(SpanKind::communication, "all_to_all");
    const RowExchange rows = row_exchange(x, send, out, recv);
    const RowType row(rows.row_bytes);
    check(MPI_Alltoallv(x.data, rows.sent.rows.data(), rows.sent.first.data(), row.get(), out.data,
                        rows.received.rows.data(), rows.received.first.data(), row.get(), comm_.get()),
          "all_to_all");
  }

  std::unique_ptr<Request> start_all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                                            std::span<const std::int64_t> recv) override {
    const RowExchange rows = row_exchange(x, send, out, recv);
    const RowType row(rows.row_bytes);
    const auto own = static_cast<std::size_t>(rank_);
    auto request = std::make_unique<MpiRequest>(name_, rank_, "all_to_all");
    const int tag = next_exchange().tag;
    const auto rows_of = [&](const Tensor& tensor, const Counts& counts, std::size_t peer) {
      return static_cast<std::byte*>(tensor.data) + std::int64_t{counts.first[peer]} * rows.row_bytes;
    };
    // Each rank begins with its neighbour, so that not all of them speak to the same one at once.
    for (int step = 1; step < size_; ++step) {
      const int from = (rank_ + size_ - step) % size_;
      const auto r = static_cast<std::size_t>(from);
      if (recv[r] == 0) continue;
      check(MPI_Irecv(rows_of(out, rows.received, r), rows.received.rows[r], row.get(), from, tag, comm_.get(),
                      request->add()),
            "all_to_all");
    }
    for (int step = 1; step < size_; ++step) {
      const int to = (rank_ + step) % size_;
      const auto r = static_cast<std::size_t>(to);
      if (send[r] == 0) continue;
      check(MPI_Isend(rows_of(x, rows.sent, r), rows.sent.rows[r], row.get(), to, tag, comm_.get(), request->add()),
            "all_to_all");
    }
    if (send[own] > 0) {
      std::memcpy(rows_of(out, rows.received, own), rows_of(x, rows.sent, own),
                  static_cast<std::size_t>(send[own] * rows.row_bytes));
    }
    return request;
  }

  void all_to_all_counts(std::span<const std::int64_t> send, std::span<std::int64_t> recv) override {
    const Span span(SpanKind::communication, "all_to_all_counts");
    const auto ranks = static_cast<std::size_t>(size_);
    require(send.size() == recv.size() && send.size() % ranks == 0,
            "group {}: all_to_all_counts of {} values into {} over {} ranks", name_, send.size(), recv.size(), size_);
    const int count = as_count(static_cast<std::int64_t>(send.size() / ranks), "all_to_all_counts");
    check(MPI_Alltoall(send.data(), count, MPI_INT64_T, recv.data(), count, MPI_INT64_T, comm_.get()),
          "all_to_all_counts");
  }

  std::unique_ptr<Request> start_send(const Tensor& x, int to, Channel channel) override {
    return send(x.data, x.bytes(), to, static_cast<int>(channel));
  }
  std::unique_ptr<Request> start_receive(const Tensor& out, int from, Channel channel) override {
    return receive(out.data, out.bytes(), from, static_cast<int>(channel));
  }
  std::unique_ptr<Request> start_send(std::span<const double> values, int to, Channel channel) override {
    return send(values.data(), static_cast<std::int64_t>(values.size_bytes()), to,
                kChannels + static_cast<int>(channel));
  }
  std::unique_ptr<Request> start_receive(std::span<double> out, int from, Channel channel) override {
    return receive(out.data(), static_cast<std::int64_t>(out.size_bytes()), from,
                   kChannels + static_cast<int>(channel));
  }

  void broadcast(void* data, std::int64_t size_bytes, int root) override {
    const Span span(SpanKind::communication, "broadcast");
    for_each_chunk(size_bytes, [&](std::int64_t first, int count) {
      check(MPI_Bcast(static_cast<std::byte*>(data) + first, count, MPI_BYTE, root, comm_.get()), "broadcast");
    });
  }

  std::vector<std::string> all_gather_text(const std::string& text) override {
    const auto length = static_cast<std::int64_t>(text.size());
    std::vector<std::int64_t> lengths(static_cast<std::size_t>(size_));
    check(MPI_Allgather(&length, 1, MPI_INT64_T, lengths.data(), 1, MPI_INT64_T, comm_.get()), "all_gather_text");
    const Counts parts = as_counts(lengths, "all_gather_text");
    std::string all(static_cast<std::size_t>(parts.first.back() + parts.rows.back()), '\0');
    check(MPI_Allgatherv(text.data(), as_count(length, "all_gather_text"), MPI_CHAR, all.data(), parts.rows.data(),
                         parts.first.data(), MPI_CHAR, comm_.get()),
          "all_gather_text");
    std::vector<std::string> result;
    for (std::size_t r = 0; r < parts.rows.size(); ++r) {
      result.push_back(all.substr(static_cast<std::size_t>(parts.first[r]), static_cast<std::size_t>(parts.rows[r])));
    }
    return result;
  }

  void barrier() override {
    const Span span(SpanKind::waiting, "barrier");
    check(MPI_Barrier(comm_.get()), "barrier");
  }

 private:
  // MPI's counts and displacements.
  struct Counts {
    std::vector<int> rows, first;
    std::int64_t total = 0;
  };

  GroupPlace place() const { return {name_, rank_, size_}; }
  void check(int code, const char* call) const { check_mpi(code, name_, rank_, call); }

  std::unique_ptr<Request> send(const void* data, std::int64_t bytes, int to, int tag) {
    const Span span(SpanKind::communication, "start_send");
    count(Collective::send, bytes);
    auto request = message("wait for send", to);
    for_each_chunk(bytes, [&](std::int64_t first, int count) {
      check(
          MPI_Isend(static_cast<const std::byte*>(data) + first, count, MPI_BYTE, to, tag, comm_.get(), request->add()),
          "start_send");
    });
    return request;
  }

  std::unique_ptr<Request> receive(void* out, std::int64_t bytes, int from, int tag) const {
    const Span span(SpanKind::communication, "start_receive");
    auto request = message("wait for receive", from);
    for_each_chunk(bytes, [&](std::int64_t first, int count) {
      check(MPI_Irecv(static_cast<std::byte*>(out) + first, count, MPI_BYTE, from, tag, comm_.get(), request->add()),
            "start_receive");
    });
    return request;
  }

  std::unique_ptr<MpiRequest> message(const char* call, int peer) const {
    check_peer(place(), peer, call);
    return std::make_unique<MpiRequest>(name_, rank_, call);
  }

  int as_count(std::int64_t count, const char* call) const {
    require(count >= 0 && count <= kMaxCount, "group {}: {} of {} elements or rows: MPI counts at most {} in one call",
            name_, call, count, kMaxCount);
    return static_cast<int>(count);
  }

  Counts as_counts(std::span<const std::int64_t> rows, const char* call) const {
    require(rows.size() == static_cast<std::size_t>(size_), "group {}: {} of {} counts for {} ranks", name_, call,
            rows.size(), size_);
    Counts result;
    for (const std::int64_t count : rows) {
      result.rows.push_back(as_count(count, call));
      result.first.push_back(as_count(result.total, call));
      result.total += count;
    }
    as_count(result.total, call);
    return result;
  }

  struct RowExchange {
    Counts sent, received;
    int row_bytes = 0;
  };

  // Of an all_to_all, checked and counted.
  RowExchange row_exchange(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                           std::span<const std::int64_t> recv) {
    const std::int64_t row_bytes = check_exchange(place(), x, send, out, recv);
    RowExchange rows{as_counts(send, "all_to_all"), as_counts(recv, "all_to_all"), as_count(row_bytes, "all_to_all")};
    count(Collective::all_to_all, (rows.sent.total - send[static_cast<std::size_t>(rank_)]) * row_bytes);
    return rows;
  }

  void reduce(const Tensor& x, MPI_Op operation, const char* call) const {
    const Span span(SpanKind::communication, call);
    const MPI_Datatype type = summable_type(x.dtype);
    for_each_chunk(x.elements(), [&](std::int64_t first, int count) {
      check(MPI_Allreduce(MPI_IN_PLACE, element(x, first), count, type, operation, comm_.get()), call);
    });
  }

  // Ranks start exchanges in the same order, so that all give one the same number.
  Exchange next_exchange() {
    constexpr int kNumbers = 1 << 13, kFirstTag = 2 * kChannels;
    const int tag = kFirstTag + 2 * (exchanges_++ % kNumbers);
    return {comm_.get(), name_, rank_, size_, tag, spare_};
  }

  std::string name_;
  CommHandle comm_;
  int rank_ = 0, size_ = 1, exchanges_ = 0;
  SpareBuffers spare_;
};

}  // namespace

CommHandle::~CommHandle() {
  if (comm_ != MPI_COMM_NULL && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
}

void check_mpi(int code, std::string_view group, int rank, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(Status::peer, "group {}, {} on its rank {}: {}: another rank failed, or the ranks are not in step", group, call,
       rank, std::string_view(text, static_cast<std::size_t>(length)));
}

std::unique_ptr<Communicator> mpi_communicator(std::string_view group, CommHandle comm) {
  return std::make_unique<MpiCommunicator>(group, std::move(comm));
}

}  // namespace dropcycle
