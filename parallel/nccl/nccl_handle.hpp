// Owners of NCCL's communicators, for the .cpp files of this folder.
#pragma once

#include <nccl.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace dropcycle {

// Throws Error{peer} that names group, call, rank and NCCL's own words, unless result is ncclSuccess.
void check_nccl(ncclResult_t result, std::string_view group, int rank, const char* call);

// The communicators that are alive, so that all can be looked at and ended together.
class NcclRegistry {
 public:
  void add(ncclComm_t comm, std::string_view group, int rank) { members_[comm] = {std::string(group), rank}; }
  // Whether it was there.
  bool remove(ncclComm_t comm) { return members_.erase(comm) > 0; }
  // Throws Error{peer} where a communicator met an error since it was last asked.
  void look() const;
  // Ends what is under way on all of them without waiting for other ranks, and frees them.
  void abort_all();

 private:
  struct Member {
    std::string group;
    int rank;
  };
  std::map<ncclComm_t, Member> members_;
};

// Owner of an ncclComm_t, freed at death; while an exception unwinds all communicators of the registry are aborted.
class NcclHandle {
 public:
  NcclHandle() = default;
  NcclHandle(ncclComm_t comm, std::shared_ptr<NcclRegistry> registry, std::string_view group, int rank);
  NcclHandle(NcclHandle&& other) noexcept;
  NcclHandle& operator=(NcclHandle&& other) noexcept;
  ~NcclHandle();
  ncclComm_t get() const { return comm_; }
  const std::shared_ptr<NcclRegistry>& registry() const { return registry_; }

 private:
  ncclComm_t comm_ = nullptr;
  std::shared_ptr<NcclRegistry> registry_;
};

}  // namespace dropcycle
