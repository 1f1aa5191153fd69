// SIGTERM and SIGUSR1 ask the run to commit a checkpoint at the next step boundary and to exit with Status::requeue.
#pragma once

#include "dropcycle/parallel/communicator.hpp"

namespace dropcycle {

// Catches the signals for the life of the object.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  // Whether any rank was asked to stop. Collective: all ranks get the same answer.
  bool requested(Communicator& world) const;
};

}  // namespace dropcycle
