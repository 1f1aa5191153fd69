#include "dropcycle/train/stop_signal.hpp"

#include <csignal>

namespace dropcycle {
namespace {

volatile std::sig_atomic_t stop_requested = 0;

void request_stop(int) { stop_requested = 1; }

}  // namespace

StopSignal::StopSignal() {
  stop_requested = 0;
  std::signal(SIGTERM, request_stop);
  std::signal(SIGUSR1, request_stop);
}

StopSignal::~StopSignal() {
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGUSR1, SIG_DFL);
}

bool StopSignal::requested(Communicator& world) const {
  double flag = stop_requested;
  world.greatest({&flag, 1});
  return flag != 0;
}

}  // namespace dropcycle
