#include "nccl.hpp"

namespace dropcycle {

std::unique_ptr<NcclWorld> nccl_world(Communicator&, Device& device) {
  fail(Status::internal, "groups on device {} in a binary that was built without NCCL", device.name());
}

}  // namespace dropcycle
