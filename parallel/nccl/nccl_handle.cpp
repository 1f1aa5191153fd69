#include "nccl_handle.hpp"

#include <exception>
#include <utility>

#include "dropcycle/core/error.hpp"

namespace dropcycle {

void check_nccl(ncclResult_t result, std::string_view group, int rank, const char* call) {
  if (result == ncclSuccess) return;
  const char* const details = ncclGetLastError(nullptr);
  fail(Status::peer, "group {}, {} on its rank {}: NCCL: {}{}{}: another rank failed, or the ranks are not in step",
       group, call, rank, ncclGetErrorString(result), details == nullptr || *details == '\0' ? "" : ": ",
       details == nullptr ? "" : details);
}

void NcclRegistry::look() const {
  for (const auto& [comm, member] : members_) {
    ncclResult_t state = ncclSuccess;
    check_nccl(ncclCommGetAsyncError(comm, &state), member.group, member.rank, "ncclCommGetAsyncError");
    if (state != ncclInProgress) check_nccl(state, member.group, member.rank, "work under way");
  }
}

void NcclRegistry::abort_all() {
  for (const auto& [comm, member] : std::exchange(members_, {})) ncclCommAbort(comm);
}

NcclHandle::NcclHandle(ncclComm_t comm, std::shared_ptr<NcclRegistry> registry, std::string_view group, int rank)
    : comm_(comm), registry_(std::move(registry)) {
  registry_->add(comm_, group, rank);
}
NcclHandle::NcclHandle(NcclHandle&& other) noexcept
    : comm_(std::exchange(other.comm_, nullptr)), registry_(std::move(other.registry_)) {}
NcclHandle& NcclHandle::operator=(NcclHandle&& other) noexcept {
  std::swap(comm_, other.comm_);
  std::swap(registry_, other.registry_);
  return *this;
}
NcclHandle::~NcclHandle() {
  if (comm_ == nullptr) return;
  if (std::uncaught_exceptions() > 0) {
    registry_->abort_all();
  } else if (registry_->remove(comm_)) {
    ncclCommDestroy(comm_);
  }
}

}  // namespace dropcycle
