// Every file call of a save fails, tears or is the last one before a crash: the earlier checkpoint stays whole and the
// new one is whole or isn't seen.
#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "checkpoint_support.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

constexpr std::int64_t kElements = 300;

std::vector<float> values_of(std::int64_t step) {
  std::vector<float> values(kElements);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(step) * 1000 + static_cast<float>(i);
  return values;
}

// Each rank writes its part of one tensor; the result is what all ranks were told.
SaveResult save_step(const std::filesystem::path& folder, std::int64_t step, const CheckpointConfig& policy,
                     int size = 1) {
  SaveResult outcome;
  run_ranks(size, [&](const RankGroup& ranks) {
    std::vector<float> values = values_of(step);
    const std::int64_t local = kElements / size;
    const std::vector<StateTensors> state = {
        {"weight",
         {{"x", {kElements}, {local * ranks.rank}, Tensor(values.data() + local * ranks.rank, {local}), true}}}};
    CheckpointWriter writer(folder, policy, ranks);
    CheckpointInfo info;
    info.step = step;
    writer.start(info, state);
    std::ranges::fill(values, -1.0F);  // asynchronous saves write their copy
    SaveResult result = writer.finish();
    CHECK(writer.poll().state == SaveResult::State::idle);
    if (ranks.rank == size - 1) outcome = result;
  });
  return outcome;
}

// The step that a resume would take; its content must be right.
std::int64_t resume(const std::filesystem::path& folder) {
  std::int64_t step = -1;
  std::vector<float> values(kElements);
  load_newest(folder, {}, [&](Checkpoint& checkpoint) {
    checkpoint.read("weight", whole("x", Tensor(values.data(), {kElements})));
    step = checkpoint.info().step;
  });
  CHECK(values == values_of(step));
  return step;
}

void try_every_call(FaultyFileSystem::Fault fault, int code, const CheckpointConfig& policy) {
  FaultyFileSystem disk;
  int committed = 0, failed = 0;
  for (int call = 1;; ++call) {
    const TestFolder folder;
    disk.arm(0, fault, 0);
    REQUIRE(save_step(folder.path(), 1, policy).state == SaveResult::State::committed);
    disk.arm(call, fault, code);
    const SaveResult result = save_step(folder.path(), 2, policy);
    const bool reached = disk.calls() >= call;
    disk.arm(0, fault, 0);
    const std::int64_t step = resume(folder.path());
    CHECK((step == 1 || step == 2));
    if (result.state == SaveResult::State::committed) {
      CHECK(step == 2);
      ++committed;
    } else {
      CHECK(result.state == SaveResult::State::failed);
      CHECK(result.error.find(folder.path().string()) != std::string::npos);
      if (fault != FaultyFileSystem::Fault::crash) {
        CHECK(result.error.find(std::strerror(code)) != std::string::npos);
      }
      ++failed;
    }
    // The next save works as if nothing had been, and leaves no rubbish.
    REQUIRE(save_step(folder.path(), 3, policy).state == SaveResult::State::committed);
    CHECK(resume(folder.path()) == 3);
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      CHECK(entry.path().extension() != ".tmp");
    }
    if (!reached) break;
  }
  CHECK(failed >= 10);
  CHECK(committed >= 1);
}

}  // namespace

TEST_CASE("each file call of a save fails once: disk full") {
  for (const bool asynchronous : {false, true}) {
    try_every_call(FaultyFileSystem::Fault::error, ENOSPC, {.keep_last = 1, .asynchronous = asynchronous});
  }
}

TEST_CASE("each file call of a save fails once: input/output error, writes torn") {
  try_every_call(FaultyFileSystem::Fault::tear, EIO, {.keep_last = 2, .asynchronous = true});
}

TEST_CASE("the process dies in each file call of a save") {
  for (const bool asynchronous : {false, true}) {
    try_every_call(FaultyFileSystem::Fault::crash, EIO, {.keep_last = 1, .asynchronous = asynchronous});
  }
}

TEST_CASE("a failure on one rank is told to all, and none of them commits") {
  const TestFolder folder;
  FaultyFileSystem disk;
  CHECK(save_step(folder.path(), 1, {}, 3).state == SaveResult::State::committed);
  // Several threads write at once, so the faulty file system would race: one rank's file can't be made instead.
  std::filesystem::create_directories(folder.path() / "step_00000002.tmp");
  class NoRankOne : public FileSystem {
   public:
    int create(const std::filesystem::path& path) override {
      if (path.filename() == "rank_00001.h5") fail(Status::storage, "{}: open failed: quota", path.string());
      return FileSystem::create(path);
    }
  } refusing;
  set_file_system(&refusing);
  const SaveResult result = save_step(folder.path(), 2, {}, 3);
  set_file_system(nullptr);
  CHECK(result.state == SaveResult::State::failed);
  CHECK(result.error.find("rank 1: ") == 0);
  CHECK(result.error.find("rank_00001.h5: open failed: quota") != std::string::npos);
  CHECK(!std::filesystem::exists(folder.path() / "step_00000002.tmp"));
  CHECK(resume(folder.path()) == 1);
}

TEST_CASE("starting again finishes the save under way and hands out its result") {
  const TestFolder folder;
  std::vector<float> values = values_of(1);
  const std::vector<StateTensors> state = {{"weight", {whole("x", Tensor(values.data(), {kElements}))}}};
  CheckpointWriter writer(folder.path(), {}, {});
  CheckpointInfo info;
  info.step = 1;
  writer.start(info, state);
  info.step = 2;
  std::ranges::copy(values_of(2), values.begin());
  SaveResult previous;
  writer.start(info, state, &previous);
  CHECK(previous.state == SaveResult::State::committed);
  CHECK(previous.folder.filename() == "step_00000001");
  CHECK(resume(folder.path()) == 1);
  CHECK(writer.finish().state == SaveResult::State::committed);
  CHECK(resume(folder.path()) == 2);
}

TEST_CASE("nothing gets its final name before all of it is on disk") {
  // Notes what a power failure could still lose.
  class Watching : public FileSystem {
   public:
    int create(const std::filesystem::path& path) override {
      unsynced_.insert(path);
      unsynced_.insert(path.parent_path());
      return FileSystem::create(path);
    }
    void write(int descriptor, const void* data, std::size_t size, std::uint64_t offset,
               const std::filesystem::path& path) override {
      unsynced_.insert(path);
      FileSystem::write(descriptor, data, size, offset, path);
    }
    void sync(int descriptor, const std::filesystem::path& path) override {
      FileSystem::sync(descriptor, path);
      unsynced_.erase(path);
    }
    void rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
      for (const auto& path : unsynced_) {
        const bool inside = path.string().starts_with(from.string());
        CHECK_MESSAGE(!inside, (path.string() + " isn't on disk when " + to.string() + " gets its name"));
      }
      FileSystem::rename(from, to);
      unsynced_.insert(to.parent_path());
      ++renames;
    }
    void sync_directory(const std::filesystem::path& directory) override {
      FileSystem::sync_directory(directory);
      unsynced_.erase(directory);
    }
    bool all_synced() const { return unsynced_.empty(); }
    int renames = 0;

   private:
    std::set<std::filesystem::path> unsynced_;
  } watching;
  const TestFolder folder;
  set_file_system(&watching);
  const SaveResult result = save_step(folder.path(), 1, {.keep_last = 0, .asynchronous = false});
  set_file_system(nullptr);
  CHECK(result.state == SaveResult::State::committed);
  CHECK(watching.renames == 2);  // the manifest and the folder
  CHECK(watching.all_synced());
}

TEST_CASE("a save that is never finished leaves nothing") {
  const TestFolder folder;
  std::vector<float> values = values_of(1);
  const std::vector<StateTensors> state = {{"weight", {whole("x", Tensor(values.data(), {kElements}))}}};
  {
    CheckpointWriter writer(folder.path(), {}, {});
    writer.start({}, state);
  }
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("a streamed checkpoint is whole or not there, and its folder must be empty") {
  std::vector<float> values = values_of(7);
  const std::vector<SliceSpec> slices = {{"weight", "x", DType::f32, {kElements}, {0}, {kElements}}};
  FaultyFileSystem disk;
  for (int call = 1;; ++call) {
    const TestFolder folder;
    const auto path = folder.path() / "model";
    disk.arm(call, FaultyFileSystem::Fault::error, ENOSPC);
    try {
      CheckpointStream stream(path, slices);
      stream.write(0, values.data());
      stream.commit({});
    } catch (const Error& error) {
      CHECK(error.status() == Status::storage);
      CHECK(!std::filesystem::exists(path.string() + ".tmp"));
    }
    const bool reached = disk.calls() >= call;
    disk.arm(0, FaultyFileSystem::Fault::error, 0);
    if (std::filesystem::exists(path)) {
      Checkpoint::open(path).verify();
      CHECK_THROWS_WITH_AS(CheckpointStream(path, slices), doctest::Contains("isn't empty"), Error);
    }
    if (!reached) {
      CHECK(std::filesystem::exists(path));
      break;
    }
  }
}
