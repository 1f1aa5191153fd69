// A process that fails in a chosen way under mpirun; runtime_test.py looks at what comes out.
#include "dropcycle/parallel/runtime.hpp"

#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

using namespace dropcycle;

namespace {

int run(const Runtime& runtime, const std::string& mode) {
  Groups groups = runtime.groups(Layout{.ep = mode == "layout" ? 3 : 1});
  Communicator& world = groups.world();
  const int last = runtime.size() - 1;
  const bool is_last = runtime.rank() == last;
  if (mode == "all") fail(Status::input, "shard x.h5 is missing");
  if (mode == "one" && is_last) fail(Status::numeric, "the loss is NaN\nin layer 3");
  if (mode == "bug" && is_last) throw std::runtime_error("unforeseen");
  if (mode == "killed" && is_last) std::raise(SIGKILL);
  if (mode == "unfinished" && is_last) {
    // The other ranks never take part in this sum: its request must not wait for them as the exception unwinds.
    std::vector<float> g(1 << 20);
    const auto request = groups[GroupKind::dp].start_all_reduce(Tensor(g.data(), Shape{1 << 20}));
    fail(Status::numeric, "the gradient is infinite");
  }
  if (mode == "out_of_step") {
    // This rank receives fewer rows than it is sent.
    std::vector<std::int32_t> x(64), out(64);
    std::vector<std::int64_t> send(static_cast<std::size_t>(runtime.size()), 2), recv = send;
    if (is_last) recv[0] = 1;
    world.all_to_all(Tensor(x.data(), Shape{64}), send, Tensor(out.data(), Shape{64}), recv);
  }
  world.barrier();
  std::printf("rank %d of %d, %d on the node\n", runtime.rank(), runtime.size(), runtime.local_size());
  return mode == "requeue" ? static_cast<int>(Status::requeue) : 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  try {
    if (mode == "early") fail(Status::usage, "a wrong option");
    Runtime runtime(&argc, &argv);
    if (mode == "uncaught") fail(Status::usage, "nobody catches this inside the runtime");
    try {
      return run(runtime, mode);
    } catch (const Error& error) {
      runtime.abort(error.status(), error.what());
    } catch (const std::exception& error) {
      runtime.abort(Status::internal, error.what());
    }
  } catch (const Error& error) {
    Runtime::let_rank_0_speak();
    std::fprintf(stderr, "dropcycle: error: %s\n", error.what());
    return static_cast<int>(error.status());
  }
}
