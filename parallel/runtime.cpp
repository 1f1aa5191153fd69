#include "dropcycle/parallel/runtime.hpp"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <thread>

#include "mpi_communicator.hpp"

namespace dropcycle {
namespace {

// How long a rank that isn't the first to fail waits to be ended by the one that is.
constexpr std::chrono::seconds kPatience{5};

// This process's rank if it was started by Open MPI's mpirun, by srun --mpi=pmi2 and the launchers like MPICH's, or by
// srun --mpi=pmix.
std::optional<int> launched_rank() {
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}) {
    if (const char* rank = std::getenv(variable)) return std::atoi(rank);
  }
  return std::nullopt;
}

// Tasks that srun started without telling them of each other would each train alone, silently.
void refuse_unconnected_tasks() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (tasks != nullptr && std::atoi(tasks) > 1) {
    fail(Status::usage,
         "srun started {} tasks (SLURM_STEP_NUM_TASKS) without MPI between them: use `srun --mpi=pmix` or mpirun",
         tasks);
  }
}

std::string host_name() {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  return host;
}

}  // namespace

// One flag in memory that the ranks of a node share: the first to raise it reports the failure. Where MPI was built or
// told to run without shared windows, every failing rank reports.
struct Runtime::FailureBoard {
  explicit FailureBoard(CommHandle node_comm) : node(std::move(node_comm)) {
    void* memory = nullptr;
    int rank = 0, unit = 0;
    MPI_Aint size = 0;
    MPI_Comm_rank(node.get(), &rank);
    MPI_Comm_set_errhandler(node.get(), MPI_ERRORS_RETURN);
    if (MPI_Win_allocate_shared(rank == 0 ? sizeof(int) : 0, sizeof(int), MPI_INFO_NULL, node.get(), &memory,
                                &window) != MPI_SUCCESS) {
      window = MPI_WIN_NULL;
      return;
    }
    MPI_Win_shared_query(window, 0, &size, &unit, &memory);
    failed = static_cast<int*>(memory);
    if (rank == 0) std::atomic_ref<int>(*failed).store(0);
    MPI_Barrier(node.get());
  }
  FailureBoard(const FailureBoard&) = delete;
  FailureBoard& operator=(const FailureBoard&) = delete;
  ~FailureBoard() {
    if (window != MPI_WIN_NULL && std::uncaught_exceptions() == 0) MPI_Win_free(&window);
  }
  bool raise() { return failed == nullptr || std::atomic_ref<int>(*failed).exchange(1) == 0; }

  CommHandle node;
  MPI_Win window = MPI_WIN_NULL;
  int* failed = nullptr;
};

Runtime::Runtime(int* argc, char*** argv) : host_(host_name()), exceptions_at_start_(std::uncaught_exceptions()) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
    if (!launched_rank()) {
      refuse_unconnected_tasks();
      return;
    }
    // A rank that waits gives its core to the others: where cores are shared a collective is a thousand times faster.
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    int thread_level = 0;  // collectives come from one thread, which every level allows
    MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &thread_level);
    owns_mpi_ = true;
  }
  uses_mpi_ = true;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node), "world", rank_,
            "division by node");
  MPI_Comm_rank(node, &local_rank_);
  MPI_Comm_size(node, &local_size_);
  board_ = std::make_unique<FailureBoard>(CommHandle(node));
}

Runtime::~Runtime() {
  if (!uses_mpi_) return;
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
  if (unwinding && size_ > 1) MPI_Abort(MPI_COMM_WORLD, static_cast<int>(Status::internal));
  board_.reset();
  if (owns_mpi_) MPI_Finalize();
}

void Runtime::let_rank_0_speak() {
  if (launched_rank().value_or(0) > 0) std::this_thread::sleep_for(std::chrono::seconds(2));
}

std::string Runtime::prefix() const {
  return size_ == 1 ? "" : fmt::format("rank {} of {} on {}: ", rank_, size_, host_);
}

Groups Runtime::groups(const Layout& layout, Device& device) const {
  const Topology topology(layout, size_);
  return size_ == 1 ? Groups::single(device) : Groups::over_mpi(topology, device);
}

void Runtime::abort(Status status, std::string_view message) const {
  const bool first = board_ == nullptr || board_->raise();
  if (first) {
    std::string line = fmt::format("dropcycle: error: {}{}", prefix(), message);
    std::ranges::replace(line, '\n', ' ');
    line += '\n';
    std::fwrite(line.data(), 1, line.size(), stderr);
    std::fflush(nullptr);
  } else {
    std::this_thread::sleep_for(kPatience);
  }
  if (uses_mpi_) MPI_Abort(MPI_COMM_WORLD, static_cast<int>(status));
  std::exit(static_cast<int>(status));
}

}  // namespace dropcycle
