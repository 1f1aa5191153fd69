// The file layer: whole files or the old ones, and errors that say what is needed.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "checkpoint_support.hpp"
#include "dropcycle/core/convert.hpp"
#include "dropcycle/core/sealed.hpp"

using namespace dropcycle;
using namespace dropcycle::testing;

namespace {

std::string error_of(Status status, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.status() == status);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a replaced file is the old one or the new one whichever call fails, and no temporary stays") {
  for (const auto fault : {FaultyFileSystem::Fault::error, FaultyFileSystem::Fault::tear}) {
    FaultyFileSystem disk;
    int failures = 0;
    for (int call = 1;; ++call) {
      const TestFolder folder;
      const auto path = folder.path() / "file";
      disk.arm(0, fault, 0);
      write_file(path, "old");
      disk.arm(call, fault, ENOSPC);
      const std::string message = error_of(Status::storage, [&] { write_file(path, "the new content"); });
      const bool reached = disk.calls() >= call;
      const std::string content = read_file(path);
      CHECK((content == "old" || content == "the new content"));
      if (message.empty()) {
        CHECK(content == "the new content");
      } else {
        ++failures;
        CHECK(message.find(folder.path().string()) != std::string::npos);
      }
      CHECK(!std::filesystem::exists(path.string() + ".tmp"));
      if (!reached) break;
    }
    CHECK(failures == 6);  // open, write, fsync, close, rename, fsync of the folder
  }
}

TEST_CASE("a full disk is told with path, reason, bytes needed and bytes free") {
  FileSystem disk;
  const int descriptor = ::open("/dev/full", O_RDWR);
  REQUIRE(descriptor >= 0);
  const std::string message = error_of(Status::storage, [&] { disk.write(descriptor, "12345", 5, 0, "/dev/full"); });
  ::close(descriptor);
  CHECK(message.find("/dev/full: write failed: No space left on device (5 bytes needed, ") == 0);
  CHECK(message.find(" free)") != std::string::npos);
}

TEST_CASE("each operation names itself and its path when it fails") {
  FileSystem disk;
  const std::filesystem::path missing = "/nonexistent/folder/file";
  const auto check = [&](const char* words, const std::function<void()>& body) {
    const std::string message = error_of(Status::storage, body);
    CHECK_MESSAGE(message.find(words) != std::string::npos, message);
    CHECK_MESSAGE(message.find("/nonexistent/folder") != std::string::npos, message);
  };
  check("open for writing failed: No such file", [&] { disk.create(missing); });
  check("rename failed: No such file", [&] { disk.rename(missing, "/tmp/x"); });
  check("open failed: No such file", [&] { disk.sync_directory(missing.parent_path()); });
  check("fsync failed: Bad file descriptor", [&] { disk.sync(-1, missing); });
  check("truncate failed: Bad file descriptor", [&] { disk.truncate(-1, 1, missing); });
  check("close failed: Bad file descriptor", [&] { disk.close(-1, missing); });
  check("write failed: Bad file descriptor", [&] { disk.write(-1, "x", 1, 0, missing); });
  CHECK(error_of(Status::input, [&] { read_file(missing); }).find("No such file") != std::string::npos);
}

TEST_CASE("reading past the end says where the file ends") {
  const TestFolder folder;
  const auto path = folder.path() / "short";
  write_file(path, "0123456789");
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  char buffer[8] = {};
  read_at(descriptor, buffer, 4, 6, path);
  CHECK(std::strcmp(buffer, "6789") == 0);
  const std::string message = error_of(Status::input, [&] { read_at(descriptor, buffer, 8, 4, path); });
  CHECK(message.find("ends at byte 10, but bytes 4 to 12 were expected") != std::string::npos);
  ::close(descriptor);
}

TEST_CASE("a seal shows every changed byte and every cut") {
  const std::string text = seal("{\n \"a\": 1,\n \"b\": \"x\"\n}");
  CHECK(check_seal(text, "f").size() == 32);
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] = static_cast<char>(changed[i] ^ 4);
    CHECK(error_of(Status::input, [&] { check_seal(changed, "f"); }).find("f: damaged") == 0);
    CHECK(!error_of(Status::input, [&] { check_seal(text.substr(0, i), "f"); }).empty());
  }
  CHECK(!error_of(Status::input, [&] { check_seal(text + " ", "f"); }).empty());
}

TEST_CASE("conversions round to nearest even and keep what isn't finite") {
  const double values[] = {1.0,
                           1.00390625,  // halfway between two bf16: to even, down
                           1.01171875,  // halfway: to even, up
                           -3.1415926535897931,
                           std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN(),
                           1e300};
  const float expected[] = {1.0F,
                            1.0F,
                            1.015625F,
                            -3.140625F,
                            std::numeric_limits<float>::infinity(),
                            0.0F,
                            std::numeric_limits<float>::infinity()};
  constexpr std::int64_t kCount = 7;
  BF16 half[kCount];
  float single[kCount], back[kCount];
  convert(values, DType::f64, half, DType::bf16, kCount);
  convert(values, DType::f64, single, DType::f32, kCount);
  convert(half, DType::bf16, back, DType::f32, kCount);
  for (int i = 0; i < kCount; ++i) {
    if (i == 5) {
      CHECK(std::isnan(back[i]));
      CHECK(std::isnan(single[i]));
    } else {
      CHECK(back[i] == expected[i]);
      CHECK(single[i] == static_cast<float>(values[i]));
    }
  }
  CHECK_THROWS_AS(convert(values, DType::f64, single, DType::i32, 1), Error);
}

TEST_CASE(
    "f16: every value goes through f32 unchanged, and every value between two rounds to the nearer, ties to even") {
  const auto half = [](float value) { return F16(value).bits; };
  const auto single = [](std::uint16_t bits) {
    F16 value;
    value.bits = bits;
    return static_cast<float>(value);
  };
  CHECK(single(0x3c01) == 1.0009765625F);
  CHECK(single(0x0001) == 0x1p-24F);
  CHECK(single(0xfbff) == -65504.0F);
  int wrong = 0;
  for (std::uint16_t bits = 0; bits < 0x7c00; ++bits) {
    const float low = single(bits), high = bits == 0x7bff ? 65536.0F : single(static_cast<std::uint16_t>(bits + 1));
    const float middle = (low + high) / 2;  // exact in f32
    const auto even = static_cast<std::uint16_t>(bits + bits % 2);
    wrong += half(low) != bits || half(-low) != (bits | 0x8000) || half(middle) != even ||
             half(std::nextafter(middle, 0.0F)) != bits || half(std::nextafter(middle, high)) != bits + 1;
  }
  CHECK(wrong == 0);
  CHECK(half(std::numeric_limits<float>::infinity()) == 0x7c00);
  CHECK(std::isnan(single(half(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(std::isnan(single(0xfc01)));
  CHECK(std::isinf(single(0x7c00)));
  const double wide = 65519.99999999;  // through f32: 65520, which rounds up to infinity
  F16 out;
  convert(&wide, DType::f64, &out, DType::f16, 1);
  CHECK(out.bits == 0x7c00);
}

TEST_CASE("the runs of a shard are its elements in order, each stretch as long as it can be") {
  const Shape global{3, 4, 5};
  for (const auto& [offset, shape, runs] : {std::tuple{Shape{0, 0, 0}, Shape{3, 4, 5}, 1},
                                            {Shape{1, 0, 0}, Shape{2, 4, 5}, 1},
                                            {Shape{0, 1, 0}, Shape{3, 2, 5}, 3},
                                            {Shape{0, 1, 2}, Shape{3, 2, 2}, 6},
                                            {Shape{2, 3, 4}, Shape{1, 1, 1}, 1},
                                            {Shape{0, 0, 0}, Shape{0, 4, 5}, 0}}) {
    std::vector<float> memory(static_cast<std::size_t>(shape.elements()) + 1);
    const ShardedTensor tensor{"x", global, offset, Tensor(memory.data(), shape), true};
    std::int64_t next = 0, seen = 0;
    for_each_run(tensor, [&](std::int64_t local, std::int64_t first, std::int64_t count) {
      CHECK(local == next);
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t at = local + i;
        const std::int64_t x = at / (shape[1] * shape[2]), y = at / shape[2] % shape[1], z = at % shape[2];
        CHECK(first + i == ((x + offset[0]) * 4 + y + offset[1]) * 5 + z + offset[2]);
      }
      next += count;
      ++seen;
    });
    CHECK(next == shape.elements());
    CHECK(seen == runs);
  }
  float value = 0;
  const ShardedTensor outside{"x", global, Shape{0, 0, 5}, Tensor(&value, {1, 1, 1}), true};
  CHECK_THROWS_WITH_AS(for_each_run(outside, [](auto, auto, auto) {}), doctest::Contains("doesn't lie in"), Error);
}
