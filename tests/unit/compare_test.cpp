#include "dropcycle/report/compare.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "../scratch_folder.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"

using namespace dropcycle;

namespace {

// A made-up run: losses fall from `start` towards 4.
std::filesystem::path write_run(const std::string& name, const std::string& method, double start) {
  const auto folder = scratch_folder() / "runs" / name;
  Config config = parse_config({"model.vocab_size=100", "model.hidden_size=16", "model.intermediate_size=32",
                                "model.layers=2", "model.heads=2", "train.global_batch=4", "data.sequence_length=64",
                                "data.valid=[{name='en', shards=['x']}, {name='x_2', shards=['y']}]"});
  if (name != "dense") config.model.experts = 8;
  config.init.method = method;
  config.train.steps = 120;
  std::filesystem::create_directories(folder);
  write_file(folder / "config.toml", to_toml(config));
  std::string steps, evaluations;
  for (int step = 1; step <= 120; ++step) {
    const double loss = 4 + (start - 4) * std::exp(-step / 40.0) + 0.1 * std::sin(step * 1.7);
    steps += to_json(StepMetrics{.step = step, .tokens = step * 256, .loss = loss, .tokens_per_second = 100.0 + step}) +
             "\n";
  }
  for (const int step : {0, 60, 120}) {
    for (const double shift : {0.0, 0.5}) {
      evaluations += to_json(EvalMetrics{.step = step,
                                         .source = shift == 0 ? "en" : "x_2",
                                         .loss = 4 + shift + (start - 4) * std::exp(-step / 40.0),
                                         .tokens = 1000}) +
                     "\n";
    }
  }
  write_file(folder / "metrics.jsonl", steps);
  write_file(folder / "eval.jsonl", evaluations);
  return folder;
}

std::vector<RunRecord> some_runs() {
  return read_runs(std::vector{write_run("dense", "scratch", 6.1), write_run("scratch", "scratch", 9.3),
                               write_run("naive_x", "naive", 6), write_run("drop's", "drop", 8)});
}

std::string message(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.status() == Status::input);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("smoothing is a centred mean that narrows at the ends") {
  CHECK(smoothed(std::vector<double>{1, 2, 6, 3, 8}, 1) == std::vector<double>{1, 3, 11.0 / 3, 17.0 / 3, 8});
  CHECK(smoothed(std::vector<double>{1, 2, 6, 3, 8}, 2) == std::vector<double>{1, 3, 4, 17.0 / 3, 8});
  CHECK(smoothed(std::vector<double>{5, 1}, 0) == std::vector<double>{5, 1});
  CHECK(smoothed(std::vector<double>{}, 3).empty());
}

TEST_CASE("the table has a line per run") {
  const auto runs = some_runs();
  const std::string table = comparison_table(runs);
  CHECK(table.starts_with("run      method          parameters  tokens        loss en       loss x_2  tokens/s\n─"));
  CHECK(table.find("\ndense    dense                 8400   30.7k  6.100 → 4.105  6.600 → 4.605       161\n") !=
        std::string::npos);
  CHECK(table.find("\ndrop's   drop r=0.5  11.7k of 30.2k   30.7k  8.000 → 4.199  8.500 → 4.699       161\n") !=
        std::string::npos);
  CHECK(std::ranges::count(table, '\n') == 6);
}

TEST_CASE("runs of one name are told apart by their paths") {
  const auto dense = write_run("dense", "scratch", 6);
  const auto other = write_run("other/dense", "scratch", 6);
  const auto third = write_run("third", "scratch", 6);
  const auto runs = read_runs(std::vector{dense, other, third / ""});
  CHECK(runs[0].name == dense.string());
  CHECK(runs[1].name == other.string());
  CHECK(runs[2].name == "third");
}

TEST_CASE("gnuplot draws the losses") {
  const auto folder = scratch_folder() / "figure";
  const Figure figure = draw_comparison(some_runs(), folder);
  const std::string svg = read_file(figure.svg);
  for (const std::string text : {"naive_x", "drop's", "held-out en", "held-out x_2", "thousand tokens", "</svg>"}) {
    CAPTURE(text);
    std::string escaped = text;
    if (const auto at = escaped.find('\''); at != std::string::npos) escaped.replace(at, 1, "&#39;");
    CHECK((svg.find(text) != std::string::npos || svg.find(escaped) != std::string::npos));
  }
  CHECK(read_file(figure.png).starts_with("\x89PNG\r\n"));
  const std::string train = read_file(folder / "train.tsv");
  CHECK(std::ranges::count(train, '\n') == 1 + 4 * 121 + 3 * 2);
  CHECK_FALSE(std::filesystem::exists(folder / "compare.gp.log"));
}

TEST_CASE("what is missing is named") {
  CHECK(message([] { read_runs(std::vector<std::filesystem::path>{"/nowhere"}); }).starts_with("/nowhere: not a run"));
  auto runs = some_runs();
  for (RunRecord& run : runs) {
    run.steps.clear();
    run.evaluations.clear();
  }
  CHECK(comparison_table(runs).find("-") != std::string::npos);
  CHECK(message([&] { draw_comparison(runs, scratch_folder() / "none"); }).starts_with("none of the runs has a loss"));

  const std::string path = std::getenv("PATH");
  ::setenv("PATH", "/nowhere", 1);
  const std::string what = message([] { draw_comparison(some_runs(), scratch_folder() / "no_gnuplot"); });
  ::setenv("PATH", path.c_str(), 1);
  CHECK(what.starts_with("gnuplot isn't installed"));
}
