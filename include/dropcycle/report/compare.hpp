// Runs side by side: a table, and figures of their losses drawn by gnuplot.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/model/cost.hpp"
#include "dropcycle/train/metrics.hpp"

namespace dropcycle {

// What a run folder says (train/metrics.hpp lists its files).
struct RunRecord {
  std::string name;  // unique among the runs read together
  Config config;
  ParameterCount parameters;
  std::vector<StepMetrics> steps;
  std::vector<EvalMetrics> evaluations;
};

// Named by the folders' last part; by the whole path where two are alike. Throws Error{input} if a folder isn't a run.
std::vector<RunRecord> read_runs(std::span<const std::filesystem::path> folders);

// "dense", "scratch", "naive", "drop r=0.5", ...: how the model came to be.
std::string method_text(const Config& config);

// Mean of the window of up to 2*reach + 1 values around each, narrower towards both ends so that it stays centred.
std::vector<double> smoothed(std::span<const double> values, std::size_t reach);

// One line per run: name, method, parameters (active of all), tokens trained on, held-out loss per source at the first
// and last evaluation in nats per token, median tokens/s. "-" where a run has no number.
std::string comparison_table(std::span<const RunRecord> runs);

struct Figure {
  std::filesystem::path svg, png;
};

// Writes train.tsv, held_out.tsv and compare.gp into `folder` (created if needed) and has gnuplot draw compare.svg and
// compare.png from them: training loss (smoothed, over the plain values), and each held-out source's loss, against
// tokens. Throws Error{input} if no run has a loss or gnuplot isn't there or fails, Error{storage}.
Figure draw_comparison(std::span<const RunRecord> runs, const std::filesystem::path& folder);

}  // namespace dropcycle
