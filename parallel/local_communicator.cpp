#include <cstring>

#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {
namespace {

class Done final : public Request {
 public:
  bool test() override { return true; }
  void wait() override {}
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::string_view group, Device& device) : name_(group), device_(device) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& name() const override { return name_; }

  void all_reduce(const Tensor&) override {}
  void sum(std::span<double>) override {}
  std::unique_ptr<Request> start_reduce_scatter(const Tensor&) override { return std::make_unique<Done>(); }
  std::unique_ptr<Request> start_all_gather(const Tensor&) override { return std::make_unique<Done>(); }
  std::unique_ptr<Request> start_all_reduce(const Tensor&) override { return std::make_unique<Done>(); }
  void greatest(std::span<double>) override {}
  void all_gather(const Tensor& x, const Tensor& out) override { copy(x, out); }
  void reduce_scatter(const Tensor& x, const Tensor& out) override { copy(x, out); }
  void all_gather(const Tensor& x, std::span<const std::int64_t>, const Tensor& out) override { copy(x, out); }
  void reduce_scatter(const Tensor& x, std::span<const std::int64_t>, const Tensor& out) override { copy(x, out); }
  void all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                  std::span<const std::int64_t> recv) override {
    require(send.size() == 1 && recv.size() == 1 && send[0] == recv[0] && x.shape.dims() >= 1 && out.shape.dims() >= 1,
            "group {}: all_to_all with itself of {} rows of {} into {}", name_, send.empty() ? -1 : send[0],
            to_string(x.shape), to_string(out.shape));
    copy(x.rows(0, send[0]), out.rows(0, recv[0]));
  }
  std::unique_ptr<Request> start_all_to_all(const Tensor& x, std::span<const std::int64_t> send, const Tensor& out,
                                            std::span<const std::int64_t> recv) override {
    all_to_all(x, send, out, recv);
    return std::make_unique<Done>();
  }
  void all_to_all_counts(std::span<const std::int64_t> send, std::span<std::int64_t> recv) override {
    require(send.size() == recv.size(), "group {}: {} counts sent and {} received", name_, send.size(), recv.size());
    if (!send.empty()) std::memmove(recv.data(), send.data(), send.size_bytes());
  }
  std::unique_ptr<Request> start_send(const Tensor&, int to, Channel) override { no_peer("start_send", to); }
  std::unique_ptr<Request> start_receive(const Tensor&, int from, Channel) override { no_peer("start_receive", from); }
  std::unique_ptr<Request> start_send(std::span<const double>, int to, Channel) override { no_peer("start_send", to); }
  std::unique_ptr<Request> start_receive(std::span<double>, int from, Channel) override {
    no_peer("start_receive", from);
  }
  void broadcast(void*, std::int64_t, int root) override { require(root == 0, "group {}: root {}", name_, root); }
  std::vector<std::string> all_gather_text(const std::string& text) override { return {text}; }
  void barrier() override {}

 private:
  [[noreturn]] void no_peer(const char* call, int rank) const {
    fail(Status::internal, "group {}: {} with rank {} of a group of one", name_, call, rank);
  }
  void copy(const Tensor& x, const Tensor& out) const {
    require(x.dtype == out.dtype && x.elements() == out.elements(), "group {}: {} {} into {} {}", name_,
            dropcycle::name(x.dtype), to_string(x.shape), dropcycle::name(out.dtype), to_string(out.shape));
    if (x.data != out.data && x.bytes() != 0) device_.copy(out.data, x.data, x.bytes());
  }

  std::string name_;
  Device& device_;
};

}  // namespace

std::unique_ptr<Communicator> local_communicator(std::string_view group, Device& device) {
  return std::make_unique<LocalCommunicator>(group, device);
}

}  // namespace dropcycle
