// Linked into every test under mpirun (through MPI's profiling interface): before each collective all ranks of the
// communicator compare operation, element type and counts; a message must have the size that its receiver expects and
// must have been received when its communicator dies. A difference, or a rank that stays away for half a minute, ends
// the test with a line that says who called what.
#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr std::chrono::seconds kPatience{30};

struct Call {
  char operation[32] = "";
  char type[24] = "";
  std::int64_t count = 0;
};

int size_of(MPI_Comm comm) {
  int size = 0;
  PMPI_Comm_size(comm, &size);
  return size;
}

std::string text_of(const Call& call) {
  return std::string(call.operation) + " of " + std::to_string(call.count) + " " + call.type;
}

// Says which communicator and who calls what, and the fault, in one write: mpirun's own lines come between two.
[[noreturn]] void abort_with(MPI_Comm comm, const Call& call, const std::string& fault) {
  char name[MPI_MAX_OBJECT_NAME] = "";
  int length = 0, rank = 0;
  PMPI_Comm_get_name(comm, name, &length);
  PMPI_Comm_rank(comm, &rank);
  const std::string line = "MPI checker: communicator " + std::string(name) + ", its rank " + std::to_string(rank) +
                           " calls " + text_of(call) + "; " + fault + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
  PMPI_Abort(MPI_COMM_WORLD, 1);
  std::abort();
}

void check(MPI_Comm comm, const char* operation, MPI_Datatype type, std::int64_t count) {
  Call call;
  std::snprintf(call.operation, sizeof call.operation, "%s", operation);
  call.count = count;
  char name[MPI_MAX_OBJECT_NAME] = "";
  int length = 0;
  PMPI_Type_get_name(type, name, &length);
  std::snprintf(call.type, sizeof call.type, "%.23s", name);

  std::vector<Call> calls(static_cast<std::size_t>(size_of(comm)));
  MPI_Request request = MPI_REQUEST_NULL;
  PMPI_Iallgather(&call, sizeof call, MPI_BYTE, calls.data(), sizeof call, MPI_BYTE, comm, &request);
  const auto start = std::chrono::steady_clock::now();
  for (int done = 0; done == 0;) {
    PMPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done == 0 && std::chrono::steady_clock::now() - start > kPatience) {
      abort_with(comm, call, "another rank does not come");
    }
  }
  for (std::size_t rank = 0; rank < calls.size(); ++rank) {
    const Call& other = calls[rank];
    if (std::memcmp(&other, &call, sizeof call) == 0) continue;
    abort_with(comm, call, "rank " + std::to_string(rank) + " calls " + text_of(other));
  }
}

// Rank s sends what this rank expects from it, in bytes.
void check_counts(MPI_Comm comm, const int* send, MPI_Datatype send_type, const int* receive,
                  MPI_Datatype receive_type) {
  int send_size = 0, receive_size = 0;
  PMPI_Type_size(send_type, &send_size);
  PMPI_Type_size(receive_type, &receive_size);
  const auto ranks = static_cast<std::size_t>(size_of(comm));
  std::vector<std::int64_t> sent(ranks), arriving(ranks);
  for (std::size_t r = 0; r < ranks; ++r) sent[r] = std::int64_t{send[r]} * send_size;
  PMPI_Alltoall(sent.data(), 1, MPI_INT64_T, arriving.data(), 1, MPI_INT64_T, comm);
  for (std::size_t r = 0; r < ranks; ++r) {
    const std::int64_t expected = std::int64_t{receive[r]} * receive_size;
    if (arriving[r] == expected) continue;
    Call call{.operation = "MPI_Alltoallv", .type = "bytes", .count = expected};
    abort_with(comm, call, "rank " + std::to_string(r) + " sends it " + std::to_string(arriving[r]) + " bytes");
  }
}

// Receives under way.
struct Posted {
  MPI_Comm comm = MPI_COMM_NULL;
  int source = 0;
  std::int64_t bytes = 0;
};
std::map<MPI_Request, Posted>& posted() {
  static std::map<MPI_Request, Posted> receives;
  return receives;
}

// What the requests are before MPI sets them to null.
std::vector<Posted> take_posted(int count, const MPI_Request* requests) {
  std::vector<Posted> result(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (const auto found = posted().find(requests[i]); found != posted().end()) result[i] = found->second;
  }
  return result;
}

void check_received(const std::vector<Posted>& receives, const std::vector<MPI_Request>& before,
                    const std::vector<MPI_Status>& statuses) {
  for (std::size_t i = 0; i < receives.size(); ++i) {
    if (receives[i].comm == MPI_COMM_NULL) continue;
    posted().erase(before[i]);
    int bytes = 0;
    PMPI_Get_count(&statuses[i], MPI_BYTE, &bytes);
    if (bytes == receives[i].bytes) continue;
    abort_with(receives[i].comm, {.operation = "MPI_Irecv", .type = "bytes", .count = receives[i].bytes},
               "rank " + std::to_string(receives[i].source) + " sends it " + std::to_string(bytes) + " bytes");
  }
}

int test_all(int count, MPI_Request* requests, int* done) {
  const std::vector<Posted> receives = take_posted(count, requests);
  const std::vector<MPI_Request> before(requests, requests + count);
  std::vector<MPI_Status> statuses(static_cast<std::size_t>(count));
  const int code = PMPI_Testall(count, requests, done, statuses.data());
  if (code == MPI_SUCCESS && *done != 0) check_received(receives, before, statuses);
  return code;
}

}  // namespace

extern "C" {

int MPI_Irecv(void* out, int count, MPI_Datatype type, int source, int tag, MPI_Comm comm, MPI_Request* request) {
  int size = 0;
  PMPI_Type_size(type, &size);
  const int code = PMPI_Irecv(out, count, type, source, tag, comm, request);
  posted()[*request] = {comm, source, std::int64_t{count} * size};
  return code;
}

int MPI_Testall(int count, MPI_Request* requests, int* done, MPI_Status*) { return test_all(count, requests, done); }

int MPI_Waitall(int count, MPI_Request* requests, MPI_Status*) {
  const std::vector<Posted> receives = take_posted(count, requests);
  const auto start = std::chrono::steady_clock::now();
  for (int done = 0; done == 0;) {
    if (const int code = test_all(count, requests, &done); code != MPI_SUCCESS) return code;
    if (done != 0 || std::chrono::steady_clock::now() - start <= kPatience) continue;
    for (const Posted& receive : receives) {
      if (receive.comm == MPI_COMM_NULL) continue;
      abort_with(receive.comm, {.operation = "MPI_Irecv", .type = "bytes", .count = receive.bytes},
                 "rank " + std::to_string(receive.source) + " sends nothing");
    }
    std::fprintf(stderr, "MPI checker: nobody receives a message, or a collective doesn't end\n");
    PMPI_Abort(MPI_COMM_WORLD, 1);
  }
  return MPI_SUCCESS;
}

int MPI_Comm_free(MPI_Comm* comm) {
  int waiting = 0;
  MPI_Status status;
  PMPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, *comm, &waiting, &status);
  if (waiting != 0) {
    abort_with(*comm, {.operation = "MPI_Comm_free"},
               "a message of rank " + std::to_string(status.MPI_SOURCE) + " was never received");
  }
  return PMPI_Comm_free(comm);
}

int MPI_Allreduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  check(comm, "MPI_Allreduce", type, count);
  return PMPI_Allreduce(in, out, count, type, op, comm);
}

int MPI_Allgather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count, MPI_Datatype out_type,
                  MPI_Comm comm) {
  check(comm, "MPI_Allgather", in_type, in_count);
  return PMPI_Allgather(in, in_count, in_type, out, out_count, out_type, comm);
}

int MPI_Allgatherv(const void* in, int in_count, MPI_Datatype in_type, void* out, const int* counts, const int* first,
                   MPI_Datatype out_type, MPI_Comm comm) {
  std::int64_t total = 0;
  for (int r = 0; r < size_of(comm); ++r) total += counts[r];
  check(comm, "MPI_Allgatherv", out_type, total);
  return PMPI_Allgatherv(in, in_count, in_type, out, counts, first, out_type, comm);
}

int MPI_Reduce_scatter_block(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  check(comm, "MPI_Reduce_scatter_block", type, count);
  return PMPI_Reduce_scatter_block(in, out, count, type, op, comm);
}

int MPI_Alltoall(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count, MPI_Datatype out_type,
                 MPI_Comm comm) {
  check(comm, "MPI_Alltoall", in_type, in_count);
  return PMPI_Alltoall(in, in_count, in_type, out, out_count, out_type, comm);
}

int MPI_Alltoallv(const void* in, const int* in_counts, const int* in_first, MPI_Datatype in_type, void* out,
                  const int* out_counts, const int* out_first, MPI_Datatype out_type, MPI_Comm comm) {
  check(comm, "MPI_Alltoallv", MPI_BYTE, 0);
  check_counts(comm, in_counts, in_type, out_counts, out_type);
  return PMPI_Alltoallv(in, in_counts, in_first, in_type, out, out_counts, out_first, out_type, comm);
}

int MPI_Bcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  check(comm, "MPI_Bcast", type, count);
  return PMPI_Bcast(data, count, type, root, comm);
}

int MPI_Barrier(MPI_Comm comm) {
  check(comm, "MPI_Barrier", MPI_BYTE, 0);
  return PMPI_Barrier(comm);
}

}  // extern "C"
