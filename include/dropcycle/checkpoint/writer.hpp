// Layout-free checkpoints, writing side (the format: checkpoint.hpp).
//
// A save writes into `step_00000120.tmp/`: each rank its file `rank_00000.h5`, synced; then rank 0 the manifest, which
// makes it whole; then the folder takes its name. A crash at any moment leaves the earlier checkpoints as they are and
// at most a `.tmp` folder, which no load looks at and the next save removes.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "dropcycle/checkpoint/checkpoint.hpp"
#include "dropcycle/core/config.hpp"
#include "dropcycle/core/sharded.hpp"

namespace dropcycle {

// All tensors of one kind on this rank. Those with writer = false are left to another rank.
struct StateTensors {
  std::string kind;
  std::vector<ShardedTensor> tensors;
};

// A part of a tensor that will be written, before its data is there.
struct SliceSpec {
  std::string kind, name;
  DType dtype = DType::f32;
  Shape global_shape, offset, shape;
  std::int64_t size_bytes() const { return shape.elements() * dropcycle::size_bytes(dtype); }
};

// A checkpoint written tensor by tensor by one process, for models that don't fit into memory. Without commit() the
// destructor removes what was written.
class CheckpointStream {
 public:
  // The final folder's name; throws Error{usage} if it exists and isn't empty, Error{storage} if it can't be written.
  CheckpointStream(const std::filesystem::path& folder, std::vector<SliceSpec> slices);
  ~CheckpointStream();
  CheckpointStream(const CheckpointStream&) = delete;
  CheckpointStream& operator=(const CheckpointStream&) = delete;
  // The data of slices[index], once each.
  void write(std::size_t index, const void* data);
  // The next `size` bytes of the data of slices[index].
  void append(std::size_t index, const void* data, std::size_t size);
  // The files that write(folder) puts into a folder go along as the model's tokenizer; at most once.
  void add_tokenizer(const std::function<void(const std::filesystem::path&)>& write);
  // Writes the manifest and gives the folder its name. Throws Error{internal} if a slice has no data.
  void commit(const CheckpointInfo& info);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct SaveResult {
  enum class State { idle, writing, committed, failed };
  State state = State::idle;
  std::filesystem::path folder;  // of this save
  std::string error;             // one line, if failed: the temporary is gone, earlier checkpoints are untouched
  std::int64_t size_bytes = 0;   // this rank's data
  double stall_seconds = 0;      // how long start() held up training
  double write_seconds = 0;      // how long this rank's writing took
};

// Saves a run's checkpoints and keeps the folder tidy. All members but result() are collective over `ranks`, to be
// called on the main thread at step boundaries; the writing thread does no communication.
class CheckpointWriter {
 public:
  CheckpointWriter(std::filesystem::path run_folder, const CheckpointConfig& policy, RankGroup ranks);
  // Waits for the writing thread; a save that wasn't finished is dropped.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Copies the tensors and starts writing (policy.asynchronous), or writes at once. A save still under way is finished
  // first; its result is what `previous` takes, if given. Failures to write don't throw: they are in the result.
  void start(const CheckpointInfo& info, std::span<const StateTensors> state, SaveResult* previous = nullptr);
  // Commits the save when all ranks have written, and applies the retention rule. `committed` and `failed` are reported
  // once; afterwards `idle`. Costs nothing while idle.
  SaveResult poll();
  // As poll(), but waits. The result of the save under way, `idle` if there was none.
  SaveResult finish();

 private:
  struct Staged;
  void write_file(const Staged& staged);
  SaveResult commit();
  std::string commit_on_root(const std::vector<std::string>& parts);
  void join();

  std::filesystem::path run_folder_;
  CheckpointConfig policy_;
  RankGroup ranks_;
  std::unique_ptr<Staged> staged_;
  SaveResult result_;
  std::string part_;  // what this rank wrote, as text; set by the thread
  std::string error_;
  std::atomic<bool> written_{false}, cancelled_{false};
  std::thread thread_;
};

// One whole save without a thread: CheckpointWriter for tools and tests. Throws Error{storage} if it fails.
std::filesystem::path save_checkpoint(const std::filesystem::path& run_folder, const CheckpointInfo& info,
                                      std::span<const StateTensors> state, const RankGroup& ranks = {});

// Removes checkpoints older than the newest `keep_last` up to `step` (0: keep all), except those whose step is a
// multiple of `keep_every` (0: none), and leftovers of interrupted saves. Those after `step` aren't touched.
void apply_retention(const std::filesystem::path& run_folder, std::int64_t step, const CheckpointConfig& policy);

}  // namespace dropcycle
