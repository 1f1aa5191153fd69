// What the processes of a job share of a NCCL communicator and of those split from it.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>

namespace stand_in {

inline constexpr int kMostRanks = 16, kBlocks = 1024;

// One collective, as a rank asked for it.
struct Call {
  std::int32_t kind = 0, type = 0, operation = 0, root = 0;
  std::uint64_t count = 0;
  std::uint64_t send = 0;   // offset in the rank's device memory
  std::uint64_t asked = 0;  // the rank's how manieth collective, of all communicators
};

// Of one rank in one communicator. Numbers count collectives from 1.
struct Slot {
  std::atomic<std::uint64_t> arrived, finished;
  Call call;
  std::atomic<std::uint64_t> split;  // number of splits that this rank came to
  int color, key, rank_in_world;
  std::atomic<std::uint64_t> split_block;  // of the group's lowest rank: (split number << 32) + block
};

// Messages from one rank to another, one at a time. Numbers count from 1.
struct Mailbox {
  std::atomic<std::uint64_t> posted, taken;
  std::uint64_t send, bytes;
};

struct Block {
  std::array<Slot, kMostRanks> slots;
  std::array<std::array<Mailbox, kMostRanks>, kMostRanks> mailboxes;  // from, to
};

struct Segment {
  std::atomic<int> blocks;  // in use
  struct Process {
    std::atomic<int> joined;
    pid_t process;
    int memory_file;
  };
  std::array<Process, kMostRanks> processes;
  std::array<Block, kBlocks> all;
};

}  // namespace stand_in
