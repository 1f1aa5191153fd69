#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "../nccl.hpp"
#include "nccl_communicator.hpp"

namespace dropcycle {
namespace {

// NCCL waits for ever, or ends in a fault, where two ranks have one GPU.
void refuse_shared_gpus(Communicator& world) {
  int number = 0;
  check_cuda(cudaGetDevice(&number), "cudaGetDevice");
  char bus[32] = "", host[256] = "";
  check_cuda(cudaDeviceGetPCIBusId(bus, sizeof bus, number), "cudaDeviceGetPCIBusId");
  gethostname(host, sizeof host - 1);
  const std::vector<std::string> gpus = world.all_gather_text(fmt::format("{} of {}", bus, host));
  for (auto gpu = gpus.begin(); gpu != gpus.end(); ++gpu) {
    const auto other = std::find(gpu + 1, gpus.end(), *gpu);
    if (other == gpus.end()) continue;
    fail(Status::usage, "ranks {} and {} have the same GPU ({}): start one process a GPU", gpu - gpus.begin(),
         other - gpus.begin(), *gpu);
  }
}

class SplitWorld final : public NcclWorld {
 public:
  SplitWorld(Communicator& world, CudaDevice& device) : device_(device), rank_(world.rank()) {
    ncclUniqueId id{};
    if (rank_ == 0) check_nccl(ncclGetUniqueId(&id), "world", rank_, "ncclGetUniqueId");
    world.broadcast(&id, sizeof id, 0);
    ncclComm_t comm = nullptr;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    check_nccl(ncclCommInitRankConfig(&comm, world.size(), id, rank_, &config), "world", rank_,
               "ncclCommInitRankConfig");
    world_ = NcclHandle(comm, registry_, "world", rank_);
    device_.set_watch([registry = registry_] { registry->look(); });
  }
  SplitWorld(const SplitWorld&) = delete;
  SplitWorld& operator=(const SplitWorld&) = delete;
  ~SplitWorld() override { device_.set_watch({}); }

  std::unique_ptr<Communicator> split(std::unique_ptr<Communicator> control, int color, bool channels) override {
    NcclHandle comm = split(world_.get(), color, control->name(), control->rank());
    NcclChannels ends = channels && control->size() > 1 ? ring(comm.get(), *control) : NcclChannels();
    return nccl_communicator(std::move(control), std::move(comm), std::move(ends), device_);
  }

 private:
  NcclHandle split(ncclComm_t parent, int color, std::string_view group, int rank) const {
    ncclComm_t comm = nullptr;
    check_nccl(ncclCommSplit(parent, color, rank, &comm, nullptr), group, rank, "ncclCommSplit");
    return color == NCCL_SPLIT_NOCOLOR ? NcclHandle() : NcclHandle(comm, registry_, group, rank);
  }

  // Edge e joins rank e and the next one. A rank is in at most one edge of each set: even edges, odd ones, and the last
  // one of an odd ring.
  NcclChannels ring(ncclComm_t comm, const Communicator& group) const {
    const int rank = group.rank(), size = group.size(), before = (rank + size - 1) % size;
    const auto set_of = [size](int edge) { return size % 2 == 1 && edge == size - 1 ? 2 : edge % 2; };
    NcclChannels channels;
    for (const Channel channel : {Channel::forward, Channel::backward}) {
      const bool forward = channel == Channel::forward;
      NcclChannels::Ends& ends = forward ? channels.forward : channels.backward;
      for (int set = 0; set < (size % 2 == 1 ? 3 : 2); ++set) {
        const bool first = set_of(rank) == set, second = set_of(before) == set;
        const int edge = first ? rank : second ? before : NCCL_SPLIT_NOCOLOR;
        NcclHandle handle = split(comm, edge, group.name(), rank);
        if (edge == NCCL_SPLIT_NOCOLOR) continue;
        // The lower rank of the group is rank 0 of the pair.
        const int peer = (first ? (rank + 1) % size : before) > rank ? 1 : 0;
        const bool sends = first == forward;
        (sends ? ends.send : ends.receive) = connect(std::move(handle), peer, sends, group);
      }
    }
    return channels;
  }

  // The first message of a pair waits on the host for its partner, which may be in the first message of another: it is
  // sent here, where all ranks do the same.
  std::unique_ptr<NcclFlow> connect(NcclHandle comm, int peer, bool sends, const Communicator& group) const {
    auto flow = std::make_unique<NcclFlow>(NcclFlow{std::move(comm), peer});
    void* const byte = device_.allocate(1);
    CudaEvent order;
    order.record(device_.stream());
    order.make_wait(flow->stream.get());
    check_nccl(sends ? ncclSend(byte, 1, ncclUint8, peer, flow->comm.get(), flow->stream.get())
                     : ncclRecv(byte, 1, ncclUint8, peer, flow->comm.get(), flow->stream.get()),
               group.name(), group.rank(), "first message");
    order.record(flow->stream.get());
    order.make_wait(device_.stream());
    device_.release(byte);
    return flow;
  }

  CudaDevice& device_;
  int rank_;
  std::shared_ptr<NcclRegistry> registry_ = std::make_shared<NcclRegistry>();
  NcclHandle world_;
};

}  // namespace

std::unique_ptr<NcclWorld> nccl_world(Communicator& world, Device& device) {
  CudaDevice& gpu = as_cuda(device);
  refuse_shared_gpus(world);
  return std::make_unique<SplitWorld>(world, gpu);
}

}  // namespace dropcycle
