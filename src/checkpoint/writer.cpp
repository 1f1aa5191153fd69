#include "dropcycle/checkpoint/writer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <utility>

#include "commit.hpp"
#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/log.hpp"
#include "dropcycle/core/threads.hpp"
#include "slice_file.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

SliceSpec spec_of(const std::string& kind, const ShardedTensor& tensor) {
  return {kind, tensor.name, tensor.local.dtype, tensor.global_shape, tensor.offset, tensor.local.shape};
}

bool same_layout(const std::vector<SliceSpec>& a, const std::vector<SliceSpec>& b) {
  return std::ranges::equal(a, b, [](const SliceSpec& x, const SliceSpec& y) {
    return x.kind == y.kind && x.name == y.name && x.dtype == y.dtype && x.global_shape == y.global_shape &&
           x.offset == y.offset && x.shape == y.shape;
  });
}

}  // namespace

// --- CheckpointStream ---

struct CheckpointStream::State {
  explicit State(const fs::path& path) : folder(path) {}
  OutputFolder folder;
  std::vector<SliceSpec> slices;
  FilePlan plan;
  std::unique_ptr<SliceFile> file;
  std::vector<AttachmentEntry> tokenizer_files;
};

CheckpointStream::CheckpointStream(const fs::path& folder, std::vector<SliceSpec> slices)
    : state_(std::make_unique<State>(folder)) {
  state_->slices = std::move(slices);
  state_->plan = plan_hdf5(state_->slices);
  const fs::path path = state_->folder.temporary() / rank_file_name(0);
  state_->file = std::make_unique<SliceFile>(path, state_->slices, state_->plan);
}

CheckpointStream::~CheckpointStream() = default;

void CheckpointStream::write(std::size_t index, const void* data) { state_->file->write(index, data); }

void CheckpointStream::append(std::size_t index, const void* data, std::size_t size) {
  state_->file->append(index, data, size);
}

void CheckpointStream::add_tokenizer(const std::function<void(const fs::path&)>& write) {
  const fs::path folder = state_->folder.temporary() / kTokenizerFolder;
  prepare_folder(folder);
  write(folder);
  for (const char* name : kTokenizerFiles) {
    if (!fs::exists(folder / name)) continue;
    const std::string content = read_file(folder / name);
    state_->tokenizer_files.push_back({name, content.size(), digest(content)});
  }
  if (state_->tokenizer_files.empty()) file_system().remove_all(folder);
}

void CheckpointStream::commit(const CheckpointInfo& info) {
  Manifest manifest = merge(std::vector<Manifest>{state_->file->finish()});
  manifest.tokenizer_files = state_->tokenizer_files;
  manifest.info = info;
  write_manifest(std::move(manifest), state_->folder.temporary());
  state_->folder.commit();
}

// --- CheckpointWriter ---

namespace {

constexpr std::int64_t kCopyGrain = 4 << 20;

// Memory for the copy of a rank's tensors, kept between saves. In large pages where the system has them: the first save
// would else spend most of its stall on page faults.
class Staging {
 public:
  Staging() = default;
  ~Staging() { release(); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  std::byte* reserve(std::size_t bytes) {
    if (bytes <= bytes_) return memory_;
    release();
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    ::madvise(memory, bytes, MADV_HUGEPAGE);
    memory_ = static_cast<std::byte*>(memory);
    bytes_ = bytes;
    return memory_;
  }

 private:
  void release() {
    if (memory_ != nullptr) ::munmap(memory_, bytes_);
    memory_ = nullptr;
    bytes_ = 0;
  }
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace

// What is being written, and the memory that its copy uses again and again.
struct CheckpointWriter::Staged {
  CheckpointInfo info;
  fs::path folder;
  std::vector<SliceSpec> slices;
  FilePlan plan;
  std::vector<const void*> sources;  // each slice's data: the tensors, or their copies in `memory`
  Staging memory;

  void copy_tensors(std::int64_t bytes) {
    std::byte* const copy = memory.reserve(static_cast<std::size_t>(bytes));
    std::vector<std::int64_t> first(slices.size());
    std::int64_t place = 0;
    for (std::size_t i = 0; i < slices.size(); ++i) {
      first[i] = place;
      place += slices[i].size_bytes();
    }
    // By bytes, not by tensors: few are large.
    in_parallel(bytes, kCopyGrain, [&](std::int64_t begin, std::int64_t end) {
      auto i = static_cast<std::size_t>(std::ranges::upper_bound(first, begin) - first.begin() - 1);
      for (; i < slices.size() && first[i] < end; ++i) {
        const std::int64_t from = std::max(begin, first[i]), to = std::min(end, first[i] + slices[i].size_bytes());
        if (from >= to) continue;
        std::memcpy(copy + from, static_cast<const std::byte*>(sources[i]) + (from - first[i]),
                    static_cast<std::size_t>(to - from));
      }
    });
    for (std::size_t i = 0; i < slices.size(); ++i) sources[i] = copy + first[i];
  }
};

CheckpointWriter::CheckpointWriter(fs::path run_folder, const CheckpointConfig& policy, RankGroup ranks)
    : run_folder_(std::move(run_folder)),
      policy_(policy),
      ranks_(std::move(ranks)),
      staged_(std::make_unique<Staged>()) {}

CheckpointWriter::~CheckpointWriter() {
  cancelled_ = true;
  join();
  if (result_.state == SaveResult::State::writing) remove_quietly(temporary_folder(staged_->folder));
}

void CheckpointWriter::join() {
  if (thread_.joinable()) thread_.join();
}

void CheckpointWriter::start(const CheckpointInfo& info, std::span<const StateTensors> state, SaveResult* previous) {
  const SaveResult finished = finish();
  if (previous != nullptr) *previous = finished;
  join();  // the removal of old checkpoints
  const Clock::time_point begin = Clock::now();
  Staged& staged = *staged_;
  staged.info = info;
  staged.folder = run_folder_ / checkpoint_name(info.step);
  result_ = {SaveResult::State::writing, staged.folder, "", 0, 0, 0};
  part_.clear();
  error_.clear();
  written_ = false;

  std::vector<SliceSpec> slices;
  staged.sources.clear();
  for (const StateTensors& kind : state) {
    for (const ShardedTensor& tensor : kind.tensors) {
      check_bounds(tensor);
      if (!tensor.writer || tensor.local.elements() == 0) continue;
      slices.push_back(spec_of(kind.kind, tensor));
      staged.sources.push_back(tensor.local.data);
      result_.size_bytes += slices.back().size_bytes();
    }
  }
  if (staged.plan.size_bytes == 0 || !same_layout(slices, staged.slices)) {
    staged.slices = std::move(slices);
    staged.plan = plan_hdf5(staged.slices);
  }
  std::string problem;
  if (ranks_.rank == 0) {
    try {
      prepare_folder(temporary_folder(staged.folder));
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  problem = ranks_.all_gather_text(problem).front();
  if (!problem.empty()) {
    error_ = problem;
    written_ = true;
  } else if (policy_.asynchronous) {
    staged.copy_tensors(result_.size_bytes);
    thread_ = std::thread([this] { write_file(*staged_); });
  } else {
    write_file(staged);
  }
  result_.stall_seconds = seconds_since(begin);
}

// On the writing thread: this rank's file.
void CheckpointWriter::write_file(const Staged& staged) {
  const Clock::time_point begin = Clock::now();
  try {
    SliceFile file(temporary_folder(staged.folder) / rank_file_name(ranks_.rank), staged.slices, staged.plan);
    for (std::size_t i = 0; i < staged.slices.size() && !cancelled_; ++i) file.write(i, staged.sources[i]);
    if (!cancelled_) part_ = to_text(file.finish());
  } catch (const std::exception& exception) {
    error_ = exception.what();
  }
  result_.write_seconds = seconds_since(begin);
  written_ = true;
}

SaveResult CheckpointWriter::poll() {
  if (result_.state != SaveResult::State::writing) return {};
  const auto states = ranks_.all_gather_text(written_ ? "written" : "");
  if (std::ranges::any_of(states, [](const std::string& text) { return text.empty(); })) {
    SaveResult progress;
    progress.state = SaveResult::State::writing;
    progress.folder = staged_->folder;
    return progress;
  }
  return commit();
}

SaveResult CheckpointWriter::finish() {
  if (result_.state != SaveResult::State::writing) return {};
  join();
  return commit();
}

// All ranks have written or failed; rank 0 decides and all ranks learn the outcome.
SaveResult CheckpointWriter::commit() {
  join();
  const auto parts = ranks_.all_gather_text(error_.empty() ? "p" + part_ : "e" + error_);
  std::string outcome;
  if (ranks_.rank == 0) {
    outcome = commit_on_root(parts);
    if (!outcome.empty()) remove_quietly(temporary_folder(staged_->folder));
  }
  outcome = ranks_.all_gather_text(outcome).front();
  SaveResult result = std::exchange(result_, {});
  result.state = outcome.empty() ? SaveResult::State::committed : SaveResult::State::failed;
  result.error = outcome;
  if (outcome.empty() && ranks_.rank == 0) {
    thread_ = std::thread([this, step = staged_->info.step] {
      try {
        apply_retention(run_folder_, step, policy_);
      } catch (const std::exception& exception) {
        log_warning("old checkpoints couldn't be removed: {}", exception.what());
      }
    });
  }
  return result;
}

// Empty, or why there is no checkpoint.
std::string CheckpointWriter::commit_on_root(const std::vector<std::string>& parts) {
  const fs::path temporary = temporary_folder(staged_->folder);
  try {
    std::vector<Manifest> manifests;
    for (std::size_t rank = 0; rank < parts.size(); ++rank) {
      if (parts[rank].at(0) == 'e') {
        return parts.size() == 1 ? parts[rank].substr(1)
                                 : "rank " + std::to_string(rank) + ": " + parts[rank].substr(1);
      }
      manifests.push_back(parse_manifest(parts[rank].substr(1), temporary / rank_file_name(static_cast<int>(rank)),
                                         /*complete=*/false));
    }
    Manifest manifest = merge(manifests);
    manifest.info = staged_->info;
    commit_folder(std::move(manifest), temporary, staged_->folder);
    return {};
  } catch (const std::exception& exception) {
    return exception.what();
  }
}

fs::path save_checkpoint(const fs::path& run_folder, const CheckpointInfo& info, std::span<const StateTensors> state,
                         const RankGroup& ranks) {
  CheckpointConfig policy;
  policy.asynchronous = false;
  policy.keep_last = 0;
  CheckpointWriter writer(run_folder, policy, ranks);
  writer.start(info, state);
  const SaveResult result = writer.finish();
  if (result.state != SaveResult::State::committed) throw Error(Status::storage, result.error);
  return result.folder;
}

}  // namespace dropcycle
