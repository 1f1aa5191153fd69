// Communicators for tensors in a GPU's memory, for the .cpp files of this folder.
#pragma once

#include <memory>

#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// NCCL's communicator of all ranks, from which those of the groups are split. It outlives them. When one of them dies
// while an exception unwinds, all are aborted.
class NcclWorld {
 public:
  virtual ~NcclWorld() = default;
  // Collective over the world: a communicator of the ranks that give the same color. `control` is the group over MPI,
  // which carries what the host holds. With `channels` it has messages too (Communicator::start_send).
  virtual std::unique_ptr<Communicator> split(std::unique_ptr<Communicator> control, int color, bool channels) = 0;
};

// Collective. `world` is the group of all ranks over MPI. Throws Error{usage} where two ranks have the same GPU.
std::unique_ptr<NcclWorld> nccl_world(Communicator& world, Device& device);

}  // namespace dropcycle
