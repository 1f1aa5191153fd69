// The binary as a user meets it: exit statuses, and one line of text for what is wrong.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "../scratch_folder.hpp"
#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/config.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/data/shard.hpp"
#include "dropcycle/train/metrics.hpp"

using namespace dropcycle;

namespace {

struct Result {
  int status = -1;
  std::string output;  // standard output and error together
};

Result dropcycle_command(const std::string& arguments) {
  const std::string command = std::string("'" DROPCYCLE_BINARY "' ") + arguments + " 2>&1";
  FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  Result result;
  char buffer[4096];
  for (std::size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) result.output.append(buffer, got);
  const int status = ::pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

void check_error(const std::string& arguments, int status, const std::string& message) {
  CAPTURE(arguments);
  const Result result = dropcycle_command(arguments);
  CHECK(result.status == status);
  CHECK(result.output == "dropcycle: error: " + message + "\n");
}

std::string at(const std::string& name) { return (scratch_folder() / name).string(); }

}  // namespace

TEST_CASE("wrong commands end with status 2 and a hint") {
  check_error("", 2, "A subcommand is required (--help shows how)");
  check_error("comprae", 2, "unknown verb 'comprae': did you mean 'compare'?");
  check_error("confg", 2, "unknown verb 'confg': did you mean 'config'?");
  check_error("--vresion", 2, "unknown option '--vresion': did you mean '--version'?");
  check_error("config --st a=1", 2, "unknown option '--st': did you mean '--set'?");
  check_error("compare", 2, "RUN is required (--help shows how)");
}

TEST_CASE("help and version go to standard output with status 0") {
  const Result help = dropcycle_command("--help 2>/dev/null");
  CHECK(help.status == 0);
  for (const std::string verb : {"tokenizer", "preprocess", "inspect", "compare", "config"}) {
    CAPTURE(verb);
    CHECK(help.output.find("\n  " + verb + " ") != std::string::npos);
  }
  CHECK(help.output.find("\nExit status:\n") != std::string::npos);
  CHECK(dropcycle_command("--version").output.starts_with("dropcycle "));
  CHECK(dropcycle_command("inspect --help").output.find("Examples:") != std::string::npos);
}

TEST_CASE("config prints the keys, and what a file comes to") {
  const Result keys = dropcycle_command("config");
  CHECK(keys.status == 0);
  CHECK(keys.output == describe_config());
  const std::string file = DROPCYCLE_SOURCE_DIR "/configs/experiment/moe_8x152m_drop.toml";
  const Result resolved = dropcycle_command("config " + file + " --set train.steps=7000 --set 'train.output=a b'");
  CHECK(resolved.status == 0);
  write_file(at("resolved.toml"), resolved.output);
  Config config = load_config(file, {"train.steps=7000", "train.output=a b"});
  resolve(config);
  CHECK(load_config(at("resolved.toml"), {}) == config);
  CHECK(config.model.head_size == 64);

  write_file(at("typo.toml"), "[model]\nlayer = 3\n");
  check_error("config " + at("typo.toml"), 2,
              at("typo.toml") + ":2:1: unknown key 'model.layer': did you mean 'layers'?");
  check_error("config " + file + " --set init.ratio=2", 2,
              "--set init.ratio=2: 'init.ratio' is 2.0, expected in [0, 1]");
  check_error("config " + at("absent.toml"), 3, at("absent.toml") + ": can't be read: No such file or directory");
}

TEST_CASE("compare prints the table of runs, and names what isn't one") {
  Config config = load_config(DROPCYCLE_SOURCE_DIR "/configs/experiment/quickstart_drop.toml", {});
  std::filesystem::create_directories(at("run_a"));
  write_file(at("run_a/config.toml"), to_toml(config));
  write_file(at("run_a/metrics.jsonl"),
             to_json(StepMetrics{.step = 1, .tokens = 2048, .loss = 9, .tokens_per_second = 321}) + "\n");
  const Result result = dropcycle_command("compare --no-figure " + at("run_a"));
  CHECK(result.status == 0);
  CHECK(result.output.find("run_a  drop r=0.5  9.7M of 23.9M    2048        -        -") != std::string::npos);
  CHECK(result.output.find("321\n") != std::string::npos);
  std::filesystem::create_directories(at("empty"));
  check_error(
      "compare " + at("empty"), 3,
      at("empty") + ": not a run: it has no config.toml; expected the train.output folder of `dropcycle train`");
}

TEST_CASE("inspect shows shards and checkpoints") {
  ShardWriter shard(at("en.h5"), "abc", 100, "en");
  shard.add_document(std::vector<std::int32_t>{1, 2, 3});
  shard.commit();
  const Result shown = dropcycle_command("inspect " + at("en.h5"));
  CHECK(shown.status == 0);
  CHECK(shown.output.find("en") != std::string::npos);
  CHECK(shown.output.find("abc") != std::string::npos);

  ModelConfig model = load_config(DROPCYCLE_SOURCE_DIR "/configs/model/quickstart_moe.toml", {}).model;
  resolve(model);
  float values[6] = {};
  const StateTensors state{
      "weight",
      {ShardedTensor{.name = "embedding", .global_shape = {2, 3}, .offset = {0, 0}, .local = Tensor(values, {2, 3})}}};
  const auto folder = save_checkpoint(at("run_b"), {.step = 12, .model = to_toml(model)}, std::span(&state, 1));
  const Result checkpoint = dropcycle_command("inspect --tensors " + at("run_b"));
  CHECK(checkpoint.status == 0);
  CHECK(checkpoint.output.find("checkpoint       " + folder.string() + "\n") == 0);
  CHECK(checkpoint.output.find("step             12\n") != std::string::npos);
  CHECK(checkpoint.output.find("1 tensors in f32") != std::string::npos);
  CHECK(checkpoint.output.find("experts = 8\n") != std::string::npos);
  CHECK(checkpoint.output.find("[2, 3] in 1 slice\n") != std::string::npos);

  const Result nothing = dropcycle_command("inspect " + at("nothing"));
  CHECK(nothing.status == 3);
  CHECK(std::ranges::count(nothing.output, '\n') == 1);
}
