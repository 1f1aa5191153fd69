#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {
namespace {

class PlannedCommunicator final : public Communicator {
 public:
  PlannedCommunicator(std::string_view group, int rank, int size) : name_(group), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  void all_reduce(const Tensor&) override { refuse(); }
  void sum(std::span<double>) override { refuse(); }
  std::unique_ptr<Request> start_reduce_scatter(const Tensor&) override { refuse(); }
  std::unique_ptr<Request> start_all_gather(const Tensor&) override { refuse(); }
  std::unique_ptr<Request> start_all_reduce(const Tensor&) override { refuse(); }
  void greatest(std::span<double>) override { refuse(); }
  void all_gather(const Tensor&, const Tensor&) override { refuse(); }
  void reduce_scatter(const Tensor&, const Tensor&) override { refuse(); }
  void all_gather(const Tensor&, std::span<const std::int64_t>, const Tensor&) override { refuse(); }
  void reduce_scatter(const Tensor&, std::span<const std::int64_t>, const Tensor&) override { refuse(); }
  void all_to_all(const Tensor&, std::span<const std::int64_t>, const Tensor&, std::span<const std::int64_t>) override {
    refuse();
  }
  std::unique_ptr<Request> start_all_to_all(const Tensor&, std::span<const std::int64_t>, const Tensor&,
                                            std::span<const std::int64_t>) override {
    refuse();
  }
  void all_to_all_counts(std::span<const std::int64_t>, std::span<std::int64_t>) override { refuse(); }
  std::unique_ptr<Request> start_send(const Tensor&, int, Channel) override { refuse(); }
  std::unique_ptr<Request> start_receive(const Tensor&, int, Channel) override { refuse(); }
  std::unique_ptr<Request> start_send(std::span<const double>, int, Channel) override { refuse(); }
  std::unique_ptr<Request> start_receive(std::span<double>, int, Channel) override { refuse(); }
  void broadcast(void*, std::int64_t, int) override { refuse(); }
  std::vector<std::string> all_gather_text(const std::string&) override { refuse(); }
  void barrier() override { refuse(); }

 private:
  [[noreturn]] void refuse() const {
    fail(Status::internal, "group {}: a collective of rank {} of {} that is only planned", name_, rank_, size_);
  }

  std::string name_;
  int rank_, size_;
};

}  // namespace

std::unique_ptr<Communicator> planned_communicator(std::string_view group, int rank, int size) {
  return std::make_unique<PlannedCommunicator>(group, rank, size);
}

}  // namespace dropcycle
