#include "dropcycle/report/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "dropcycle/core/error.hpp"
#include "sources.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

RunRecord read_run(const fs::path& folder) {
  const fs::path config_file = folder / "config.toml";
  if (!fs::exists(config_file)) {
    fail(Status::input, "{}: not a run: it has no config.toml; expected the train.output folder of `dropcycle train`",
         folder.string());
  }
  RunRecord run;
  run.config = load_config(config_file, {});
  resolve(run.config.model);
  run.parameters = count_parameters(run.config.model);
  run.steps = read_step_metrics(folder);
  run.evaluations = read_eval_metrics(folder);
  return run;
}

std::string short_count(std::int64_t value) {
  const auto number = static_cast<double>(value);
  if (number >= 1e9) return fmt::format("{:.2f}B", number / 1e9);
  if (number >= 1e6) return fmt::format("{:.1f}M", number / 1e6);
  if (number >= 1e4) return fmt::format("{:.1f}k", number / 1e3);
  return fmt::format("{}", value);
}

// Characters of UTF-8 text.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string median_speed(const RunRecord& run) {
  std::vector<double> speeds;
  for (const StepMetrics& step : run.steps) {
    if (std::isfinite(step.tokens_per_second)) speeds.push_back(step.tokens_per_second);
  }
  if (speeds.empty()) return "-";
  std::ranges::nth_element(speeds, speeds.begin() + static_cast<std::ptrdiff_t>(speeds.size() / 2));
  return fmt::format("{:.0f}", speeds[speeds.size() / 2]);
}

// "9.712 → 5.421" of the first and last evaluation of a source.
std::string held_out_text(const RunRecord& run, const std::string& source) {
  std::vector<double> losses;
  for (const EvalMetrics& evaluation : run.evaluations) {
    if (evaluation.source == source) losses.push_back(evaluation.loss);
  }
  if (losses.empty()) return "-";
  if (losses.size() == 1) return fmt::format("{:.3f}", losses[0]);
  return fmt::format("{:.3f} → {:.3f}", losses.front(), losses.back());
}

std::vector<std::string> table_row(const RunRecord& run, std::span<const std::string> sources) {
  const ParameterCount& count = run.parameters;
  std::string parameters = short_count(count.total);
  if (count.active != count.total) parameters = fmt::format("{} of {}", short_count(count.active), parameters);
  std::vector<std::string> row = {run.name, method_text(run.config), parameters,
                                  run.steps.empty() ? "-" : short_count(run.steps.back().tokens)};
  for (const std::string& source : sources) row.push_back(held_out_text(run, source));
  row.push_back(median_speed(run));
  return row;
}

}  // namespace

std::vector<std::string> sources_of(std::span<const RunRecord> runs) {
  std::vector<std::string> sources;
  for (const RunRecord& run : runs) {
    for (const SourceConfig& source : run.config.data.valid) {
      if (std::ranges::find(sources, source.name) == sources.end()) sources.push_back(source.name);
    }
  }
  return sources;
}

std::vector<RunRecord> read_runs(std::span<const fs::path> folders) {
  std::vector<RunRecord> runs;
  for (const fs::path& folder : folders) {
    runs.push_back(read_run(folder));
    runs.back().name = fs::absolute(folder / ".").lexically_normal().parent_path().filename().string();
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const bool alike = std::ranges::count(runs, runs[i].name, &RunRecord::name) > 1;
    if (!alike) continue;
    const std::string name = runs[i].name;
    for (std::size_t j = i; j < runs.size(); ++j) {
      if (runs[j].name == name) runs[j].name = folders[j].string();
    }
  }
  return runs;
}

std::string method_text(const Config& config) {
  const InitConfig& init = config.init;
  if (init.method == "drop" && init.index_sets == "per_matrix") return fmt::format("drop r={} per matrix", init.ratio);
  if (init.method == "drop" || init.method == "noise") return fmt::format("{} r={}", init.method, init.ratio);
  if (init.method == "checkpoint") return "continued";
  if (init.method == "scratch" && !config.model.is_moe()) return "dense";
  return init.method;
}

std::vector<double> smoothed(std::span<const double> values, std::size_t reach) {
  std::vector<double> means(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t side = std::min({reach, i, values.size() - 1 - i});
    double sum = 0;
    for (std::size_t j = i - side; j <= i + side; ++j) sum += values[j];
    means[i] = sum / static_cast<double>(2 * side + 1);
  }
  return means;
}

std::string comparison_table(std::span<const RunRecord> runs) {
  const std::vector<std::string> sources = sources_of(runs);
  std::vector<std::vector<std::string>> rows = {{"run", "method", "parameters", "tokens"}};
  for (const std::string& source : sources) rows[0].push_back("loss " + source);
  rows[0].push_back("tokens/s");
  for (const RunRecord& run : runs) rows.push_back(table_row(run, sources));

  std::string text;
  std::vector<std::size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
  }
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (std::size_t i = 0; i < rows[r].size(); ++i) {
      const std::string padding(widths[i] - width(rows[r][i]), ' ');
      const bool is_text = i < 2;
      line += (i == 0 ? "" : "  ") + (is_text ? rows[r][i] + padding : padding + rows[r][i]);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    if (r > 0) continue;
    for (std::size_t i = 0; i < widths.size(); ++i) {
      for (std::size_t j = 0; j < widths[i]; ++j) text += "─";
      text += i + 1 < widths.size() ? "  " : "\n";
    }
  }
  return text;
}

}  // namespace dropcycle
