#include "dropcycle/train/metrics.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>

#include "../scratch_folder.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"

using namespace dropcycle;

namespace {

std::filesystem::path run_folder(const std::string& name) { return scratch_folder() / name; }

StepMetrics step_metrics(std::int64_t step) {
  const double t = static_cast<double>(step);
  return {.step = step,
          .tokens = step * 4096,
          .loss = 5 / t,
          .balance_loss = 1 + 0.1 / t,
          .gradient_norm = 0.7 * t,
          .learning_rate = 1e-4 * t,
          .step_seconds = 0.25,
          .tokens_per_second = 16384,
          .product_share = 0.4,
          .seconds_left = 125 - t,
          .expert_load = {{0.25, 0.75}, {0.4, 0.6}},
          .bytes_sent = {{"dense_gradient", 4096 * step}, {"ep", 512}}};
}

// NaN equals NaN here: both mean unknown.
bool same(const StepMetrics& a, const StepMetrics& b) { return to_json(a) == to_json(b); }

std::vector<std::filesystem::path> event_files(const std::filesystem::path& run) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(run / "tensorboard")) paths.push_back(entry.path());
  std::ranges::sort(paths);
  return paths;
}

// An independent reader of TensorBoard's format: CRC bit by bit, fields by their tags.
std::uint32_t bitwise_crc32c(const std::string& bytes) {
  std::uint32_t crc = ~0U;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1U) != 0 ? (crc >> 1) ^ 0x82f63b78U : crc >> 1;
  }
  return ~crc;
}

std::uint32_t masked(std::uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8U; }

template <class T>
T load(const std::string& bytes, std::size_t at) {
  REQUIRE(at + sizeof(T) <= bytes.size());
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

std::vector<std::string> records_of(const std::string& content) {
  std::vector<std::string> records;
  for (std::size_t at = 0; at < content.size();) {
    const auto length = load<std::uint64_t>(content, at);
    CHECK(load<std::uint32_t>(content, at + 8) == masked(bitwise_crc32c(content.substr(at, 8))));
    REQUIRE(at + 16 + length <= content.size());
    records.push_back(content.substr(at + 12, length));
    CHECK(load<std::uint32_t>(content, at + 12 + length) == masked(bitwise_crc32c(records.back())));
    at += 16 + length;
  }
  return records;
}

struct WireField {
  int number = 0;
  std::uint64_t integer = 0;  // of wire types 0, 1 and 5
  std::string bytes = {};     // of wire type 2
};

std::vector<WireField> fields_of(const std::string& message) {
  std::size_t at = 0;
  const auto varint = [&] {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = load<std::uint8_t>(message, at++);
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
  };
  std::vector<WireField> fields;
  while (at < message.size()) {
    const std::uint64_t tag = varint();
    WireField field{.number = static_cast<int>(tag >> 3)};
    switch (tag & 7) {
      case 0:
        field.integer = varint();
        break;
      case 1:
        field.integer = load<std::uint64_t>(message, at);
        at += 8;
        break;
      case 2: {
        const std::uint64_t size = varint();
        REQUIRE(at + size <= message.size());
        field.bytes = message.substr(at, size);
        at += size;
        break;
      }
      case 5:
        field.integer = load<std::uint32_t>(message, at);
        at += 4;
        break;
      default:
        FAIL("wire type");
    }
    fields.push_back(field);
  }
  return fields;
}

}  // namespace

TEST_CASE("a step and an evaluation survive JSON") {
  StepMetrics metrics = step_metrics(3);
  CHECK(std::isnan(metrics.z_loss));
  const StepMetrics read = parse_step_metrics(to_json(metrics), "here");
  CHECK(same(read, metrics));
  CHECK(std::isnan(read.z_loss));
  metrics.z_loss = 0.125;
  CHECK(parse_step_metrics(to_json(metrics), "here") == metrics);
  CHECK(to_json(metrics).find('\n') == std::string::npos);
  const EvalMetrics evaluation{.step = 7, .source = "ja \"x\"", .loss = 2, .tokens = 12};
  CHECK(parse_eval_metrics(to_json(evaluation), "here") == evaluation);
  CHECK(evaluation.perplexity() == doctest::Approx(7.389056));
  try {
    parse_step_metrics("{\"step\": 1}", "run/metrics.jsonl:4");
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.status() == Status::input);
    CHECK(std::string(error.what()).starts_with("run/metrics.jsonl:4: not a line of metrics"));
  }
}

TEST_CASE("the worst imbalance is the highest load over the mean load of any layer") {
  CHECK(worst_imbalance(step_metrics(1)) == doctest::Approx(1.5));
  CHECK(std::isnan(worst_imbalance(StepMetrics{})));
  CHECK(worst_imbalance({.expert_load = {{0.25, 0.25, 0.25, 0.25}, {0, 1, 0, 0}}}) == doctest::Approx(4));
}

TEST_CASE("the terminal line shows what is known") {
  CHECK(terminal_line(step_metrics(5), 400) ==
        "step 5/400  left 2m00s  loss 1.0000  16.4k tokens/s  40% of product speed  experts 1.50  norm 3.50  "
        "lr 5.00e-04  balance 1.020");
  CHECK(terminal_line({.step = 1, .loss = 2, .tokens_per_second = 950, .seconds_left = 7500}, 2) ==
        "step 1/2  left 2h05m  loss 2.0000  950 tokens/s");
}

TEST_CASE("after a resume each step stands in the files once") {
  const auto run = run_folder("resume");
  {
    MetricsWriter writer(run, 0, 9, 100);
    writer.add(EvalMetrics{.step = 0, .source = "en", .loss = 9, .tokens = 5});
    for (int step = 1; step <= 5; ++step) writer.add(step_metrics(step));
    writer.add(EvalMetrics{.step = 4, .source = "en", .loss = 8, .tokens = 5});
    writer.sync();
  }
  {
    std::ofstream torn(run / "metrics.jsonl", std::ios::app);
    torn << "{\"step\": 6, \"tok";
  }
  {
    MetricsWriter writer(run, 3, 9, 100);
    for (int step = 4; step <= 9; ++step) {
      StepMetrics metrics = step_metrics(step);
      metrics.loss = 1;
      writer.add(metrics);
    }
    writer.add(EvalMetrics{.step = 9, .source = "en", .loss = 7, .tokens = 5});
    writer.add(EvalMetrics{.step = 9, .source = "ja", .loss = 6, .tokens = 5});
  }
  const auto steps = read_step_metrics(run);
  REQUIRE(steps.size() == 9);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    CHECK(steps[i].step == static_cast<std::int64_t>(i) + 1);
    CHECK(steps[i].loss == (i < 3 ? step_metrics(steps[i].step).loss : 1.0));
  }
  const std::string content = read_file(run / "metrics.jsonl");
  CHECK(std::ranges::count(content, '\n') == 9);
  const auto evaluations = read_eval_metrics(run);
  REQUIRE(evaluations.size() == 3);
  CHECK(evaluations[0].step == 0);
  CHECK(evaluations[1].source == "en");
  CHECK(evaluations[2].source == "ja");

  // TensorBoard's two files: the second, by name too, says that it starts over from step 4.
  const auto events = event_files(run);
  REQUIRE(events.size() == 2);
  const auto records = records_of(read_file(events[1]));
  REQUIRE(records.size() == 10);
  const auto start = fields_of(records[1]);
  REQUIRE(start.size() == 3);
  CHECK(start[1].number == 2);
  CHECK(start[1].integer == 4);
  CHECK(start[2].number == 7);
  CHECK(start[2].bytes == "\x08\x01");
}

TEST_CASE("event files hold records with checksums, and the scalars") {
  CHECK(bitwise_crc32c("123456789") == 0xe3069283U);  // the check value of CRC-32C
  const auto run = run_folder("events");
  {
    MetricsWriter writer(run, 0, 300, 100);
    writer.add(step_metrics(300));
  }
  const auto events = event_files(run);
  REQUIRE(events.size() == 1);
  CHECK(events[0].filename().string().starts_with("events.out.tfevents."));
  const auto records = records_of(read_file(events[0]));
  REQUIRE(records.size() == 2);
  const auto version = fields_of(records[0]);
  CHECK(version.back().number == 3);
  CHECK(version.back().bytes == "brain.Event:2");
  const auto event = fields_of(records[1]);
  REQUIRE(event.size() == 3);
  CHECK(event[0].number == 1);
  CHECK(std::bit_cast<double>(event[0].integer) > 1.6e9);
  CHECK(event[1].number == 2);
  CHECK(event[1].integer == 300);
  CHECK(event[2].number == 5);
  std::vector<std::string> tags;
  for (const WireField& value : fields_of(event[2].bytes)) {
    CHECK(value.number == 1);
    const auto parts = fields_of(value.bytes);
    REQUIRE(parts.size() == 2);
    CHECK(parts[0].number == 1);
    CHECK(parts[1].number == 2);
    tags.push_back(parts[0].bytes);
    const float number = std::bit_cast<float>(static_cast<std::uint32_t>(parts[1].integer));
    if (tags.back() == "loss/train") CHECK(number == static_cast<float>(5.0 / 300));
    if (tags.back() == "expert_load_layer_0/expert_1") CHECK(number == 0.75F);
  }
  CHECK(std::ranges::count(tags, "loss/train") == 1);
  CHECK(std::ranges::count(tags, "loss/router_z") == 0);  // unknown
  CHECK(std::ranges::count(tags, "expert_load_layer_1/expert_0") == 1);
}

TEST_CASE("a full disk stops no run, and the lines come once there is room") {
  struct Full : FileSystem {
    bool full = false;
    void write(int descriptor, const void* data, std::size_t size, std::uint64_t offset,
               const std::filesystem::path& path) override {
      if (full) fail(Status::storage, "{}: write failed: No space left on device", path.string());
      FileSystem::write(descriptor, data, size, offset, path);
    }
  } disk;
  const auto run = run_folder("full");
  set_file_system(&disk);
  {
    MetricsWriter writer(run, 0, 3, 100);
    writer.add(step_metrics(1));
    disk.full = true;
    writer.add(step_metrics(2));
    disk.full = false;
    writer.add(step_metrics(3));
  }
  set_file_system(nullptr);
  CHECK(read_step_metrics(run).size() == 3);
}
