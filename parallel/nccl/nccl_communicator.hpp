// The communicator of a group over NCCL, for the .cpp files of this folder.
#pragma once

#include <memory>
#include <vector>

#include "dropcycle/device/cuda.hpp"
#include "dropcycle/parallel/communicator.hpp"
#include "nccl_handle.hpp"

namespace dropcycle {

// One direction of messages between two ranks: a communicator of the two, and a stream, so that no message waits for
// another one's partner. Its kernels go before those of products, which would hold up the other rank too.
struct NcclFlow {
  NcclHandle comm;
  int peer = 0;  // its rank in `comm`
  CudaStream stream{CudaStream::Priority::high};
};

// The flows of a ring of ranks: forward goes to the next rank, backward to the one before. All null without channels.
struct NcclChannels {
  struct Ends {
    std::unique_ptr<NcclFlow> send, receive;
  };
  Ends forward, backward;
};

// `control` carries what the host holds; the device outlives the communicator.
std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> control, NcclHandle comm,
                                                NcclChannels channels, CudaDevice& device);

}  // namespace dropcycle
