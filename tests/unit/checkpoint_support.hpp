// What the checkpoint tests share: a folder of their own, ranks as threads, a file system that fails on request.
#pragma once

#include <unistd.h>

#include <barrier>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/random.hpp"

namespace dropcycle::testing {

// A fresh folder, in memory where the system has such a place (syncs cost nothing there), removed at the end.
class TestFolder {
 public:
  TestFolder() {
    const bool memory = ::access("/dev/shm", W_OK) == 0;
    const std::filesystem::path place = memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string pattern = (place / "dropcycle_test_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) fail(Status::storage, "no folder for the test: {}", std::strerror(errno));
    path_ = pattern;
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Runs body(group) once per rank, each in a thread; an exception ends the test.
inline void run_ranks(int size, const std::function<void(const RankGroup&)>& body) {
  std::vector<std::string> texts(static_cast<std::size_t>(size));
  std::barrier<> barrier(size);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      RankGroup group{rank, size, [&, rank](const std::string& text) {
                        texts[static_cast<std::size_t>(rank)] = text;
                        barrier.arrive_and_wait();
                        std::vector<std::string> copy = texts;
                        barrier.arrive_and_wait();
                        return copy;
                      }};
      try {
        body(group);
      } catch (...) {
        errors[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// Counts the calls and makes one of them go wrong.
class FaultyFileSystem : public FileSystem {
 public:
  enum class Fault {
    error,  // the call does nothing and fails; later ones work
    tear,   // a write gets half of its bytes down and fails; other calls as `error`
    crash,  // as if the process died in the call: a write is torn, and nothing after it has any effect
  };
  FaultyFileSystem() { set_file_system(this); }
  ~FaultyFileSystem() override { set_file_system(nullptr); }
  void arm(int call, Fault fault, int code) {
    countdown_ = call;
    fault_ = fault;
    code_ = code;
    calls_ = 0;
    dead_ = false;
  }
  int calls() const { return calls_; }

  int create(const std::filesystem::path& path) override {
    step("open", path);
    return FileSystem::create(path);
  }
  void write(int descriptor, const void* data, std::size_t size, std::uint64_t offset,
             const std::filesystem::path& path) override {
    step("write", path, [&] {
      if (fault_ != Fault::error) FileSystem::write(descriptor, data, size / 2, offset, path);
    });
    FileSystem::write(descriptor, data, size, offset, path);
  }
  void truncate(int descriptor, std::uint64_t size, const std::filesystem::path& path) override {
    step("truncate", path);
    FileSystem::truncate(descriptor, size, path);
  }
  void sync(int descriptor, const std::filesystem::path& path) override {
    step("fsync", path);
    FileSystem::sync(descriptor, path);
  }
  void close(int descriptor, const std::filesystem::path& path) override {
    FileSystem::close(descriptor, path);  // even a close that fails closes
    step("close", path);
  }
  void rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    step("rename", from);
    FileSystem::rename(from, to);
  }
  void sync_directory(const std::filesystem::path& directory) override {
    step("fsync", directory);
    FileSystem::sync_directory(directory);
  }
  void remove_all(const std::filesystem::path& path) override {
    step("remove", path);
    FileSystem::remove_all(path);
  }

 private:
  void step(const char* call, const std::filesystem::path& path, const std::function<void()>& before_failing = {}) {
    ++calls_;
    if (dead_) fail(Status::storage, "{}: {}: the process is dead", path.string(), call);
    if (--countdown_ != 0) return;
    if (before_failing) before_failing();
    dead_ = fault_ == Fault::crash;
    fail(Status::storage, "{}: {} failed: {}", path.string(), call, std::strerror(code_));
  }

  int countdown_ = 0, code_ = 0, calls_ = 0;
  Fault fault_ = Fault::error;
  bool dead_ = false;
};

// Memory for a tensor, with test numbers in it.
class TestTensor {
 public:
  TestTensor(DType dtype, const Shape& shape, std::string_view name = "x", std::uint64_t seed = 1)
      : memory_(static_cast<std::size_t>(shape.elements() * size_bytes(dtype))), tensor_(memory_.data(), dtype, shape) {
    RandomStream(seed, Purpose::test, name).fill_normal(tensor_, 0, 0.0, 1.0);
  }
  const Tensor& tensor() const { return tensor_; }
  bool operator==(const TestTensor& other) const { return memory_ == other.memory_; }

 private:
  std::vector<std::byte> memory_;
  Tensor tensor_;
};

}  // namespace dropcycle::testing
