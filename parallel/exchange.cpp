#include "exchange.hpp"

#include <algorithm>
#include <exception>
#include <limits>

#include "dropcycle/core/profile.hpp"
#include "mpi_communicator.hpp"

namespace dropcycle {
namespace {

template <class T>
void add_in_rank_order(const std::vector<const std::byte*>& pieces, void* out, std::int64_t count) {
  // Blocks that stay in the first cache while the ranks' pieces are added.
  constexpr std::int64_t kBlock = 2048;
  T* const sum = static_cast<T*>(out);
  T block[kBlock];
  for (std::int64_t first = 0; first < count; first += kBlock) {
    const std::int64_t n = std::min(kBlock, count - first);
    std::copy_n(reinterpret_cast<const T*>(pieces[0]) + first, n, block);
    for (std::size_t r = 1; r < pieces.size(); ++r) {
      const T* const piece = reinterpret_cast<const T*>(pieces[r]) + first;
      for (std::int64_t i = 0; i < n; ++i) block[i] += piece[i];
    }
    std::copy_n(block, n, sum + first);
  }
}

class ExchangeRequest final : public Request {
 public:
  ExchangeRequest(const Exchange& exchange, const Tensor& x, std::vector<Piece> pieces, bool reduce, bool gather)
      : exchange_(exchange), x_(x), pieces_(std::move(pieces)), own_(piece(exchange.rank)), gather_(gather) {
    if (reduce) {
      start_reduce();
    } else {
      start_gather();
    }
  }
  ExchangeRequest(const ExchangeRequest&) = delete;
  ExchangeRequest& operator=(const ExchangeRequest&) = delete;
  ~ExchangeRequest() override {
    if (std::uncaught_exceptions() > 0) return;
    MPI_Waitall(count(), requests_.data(), MPI_STATUSES_IGNORE);
  }

  bool test() override {
    int done = 0;
    check(MPI_Testall(count(), requests_.data(), &done, MPI_STATUSES_IGNORE));
    return done != 0 && !next();
  }
  void wait() override {
    const Span span(SpanKind::waiting, "wait for exchange");
    do {
      check(MPI_Waitall(count(), requests_.data(), MPI_STATUSES_IGNORE));
    } while (next());
  }

 private:
  int count() const { return static_cast<int>(requests_.size()); }
  Tensor piece(int rank) const {
    const Piece& part = pieces_[static_cast<std::size_t>(rank)];
    return x_.rows(part.first, part.count);
  }
  void check(int code) const { check_mpi(code, exchange_.group, exchange_.rank, "exchange of pieces"); }
  static int bytes_of(const Tensor& part) {
    require(part.bytes() <= std::numeric_limits<int>::max(), "an exchange of pieces of {} bytes", part.bytes());
    return static_cast<int>(part.bytes());
  }
  // Each rank begins with its neighbour, so that not all of them speak to the same one at once.
  template <class F>
  void for_each_peer(F&& call) const {
    for (int step = 1; step < exchange_.size; ++step) call((exchange_.rank + step) % exchange_.size);
  }
  void receive(void* into, int bytes, int from, int tag) {
    if (bytes == 0) return;
    check(MPI_Irecv(into, bytes, MPI_BYTE, from, tag, exchange_.comm, &requests_.emplace_back(MPI_REQUEST_NULL)));
  }
  void send(const Tensor& part, int to, int tag) {
    if (part.bytes() == 0) return;
    check(MPI_Isend(part.data, bytes_of(part), MPI_BYTE, to, tag, exchange_.comm,
                    &requests_.emplace_back(MPI_REQUEST_NULL)));
  }

  void start_reduce() {
    reducing_ = true;
    arrived_ = exchange_.spare.take(own_.bytes() * (exchange_.size - 1));
    for_each_peer([&](int peer) { receive(arrival(peer), bytes_of(own_), peer, exchange_.tag); });
    for_each_peer([&](int peer) { send(piece(peer), peer, exchange_.tag); });
  }
  void start_gather() {
    gather_ = false;
    requests_.clear();
    for_each_peer([&](int peer) {
      const Tensor part = piece(peer);
      receive(part.data, bytes_of(part), peer, exchange_.tag + 1);
    });
    for_each_peer([&](int peer) { send(own_, peer, exchange_.tag + 1); });
  }
  std::byte* arrival(int peer) const { return arrived_.data() + own_.bytes() * (peer - (peer > exchange_.rank)); }

  // What follows the messages that have come; false: nothing more.
  bool next() {
    if (reducing_) {
      reducing_ = false;
      add();
      exchange_.spare.give_back(std::move(arrived_));
    }
    if (!gather_) return false;
    start_gather();
    return true;
  }
  void add() const {
    std::vector<const std::byte*> pieces;
    for (int r = 0; r < exchange_.size; ++r) {
      pieces.push_back(r == exchange_.rank ? static_cast<const std::byte*>(own_.data) : arrival(r));
    }
    switch (x_.dtype) {
      case DType::f64:
        return add_in_rank_order<double>(pieces, own_.data, own_.elements());
      case DType::f32:
        return add_in_rank_order<float>(pieces, own_.data, own_.elements());
      case DType::i32:
        return add_in_rank_order<std::int32_t>(pieces, own_.data, own_.elements());
      case DType::bf16:
      case DType::f16:
      case DType::i16:
        break;
    }
    fail(Status::internal, "a reduction of {}: expected f64, f32 or i32", name(x_.dtype));
  }

  Exchange exchange_;
  Tensor x_;
  std::vector<Piece> pieces_;
  Tensor own_;
  bool reducing_ = false, gather_;
  Buffer arrived_;
  std::vector<MPI_Request> requests_;
};

}  // namespace

Buffer SpareBuffers::take(std::int64_t size_bytes) {
  const auto fits = std::ranges::find_if(buffers_, [&](const Buffer& b) { return b.size_bytes() >= size_bytes; });
  if (fits == buffers_.end()) return Buffer(size_bytes);
  Buffer buffer = std::move(*fits);
  buffers_.erase(fits);
  return buffer;
}

void SpareBuffers::give_back(Buffer buffer) { buffers_.push_back(std::move(buffer)); }

std::unique_ptr<Request> start_exchange(const Exchange& exchange, const Tensor& x, std::vector<Piece> pieces,
                                        bool reduce, bool gather) {
  const Span span(SpanKind::communication, "start exchange");
  const Tensor flat = x.reshaped({x.elements()});
  return std::make_unique<ExchangeRequest>(exchange, flat, std::move(pieces), reduce, gather);
}

}  // namespace dropcycle
