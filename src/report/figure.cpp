// compare.gp and its data.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/report/compare.hpp"
#include "gnuplot.hpp"
#include "sources.hpp"

namespace dropcycle {
namespace {

// Distinct to colour-blind eyes and in print (Okabe and Ito, "Color universal design", 2008).
constexpr std::array<const char*, 7> kColours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                 "#E69F00", "#56B4E9", "#000000"};
constexpr int kPanelWidth = 460, kPanelHeight = 360;

struct Curve {
  std::size_t run;  // its colour
  int block;        // of the data file
};

struct Panel {
  std::string title, file;
  std::vector<Curve> curves;
  bool is_training = false;
};

// Tokens are shown in this unit.
struct Unit {
  double tokens;
  const char* name;
};

Unit unit_for(std::span<const RunRecord> runs) {
  std::int64_t most = 0;
  for (const RunRecord& run : runs) {
    if (!run.steps.empty()) most = std::max(most, run.steps.back().tokens);
  }
  if (most >= 2'000'000'000) return {1e9, "billion tokens"};
  if (most >= 2'000'000) return {1e6, "million tokens"};
  return {1e3, "thousand tokens"};
}

// Columns: tokens in the unit, loss, smoothed loss.
std::string training_block(const RunRecord& run, const Unit& unit) {
  std::vector<double> tokens, losses;
  for (const StepMetrics& step : run.steps) {
    if (!std::isfinite(step.loss)) continue;
    tokens.push_back(static_cast<double>(step.tokens) / unit.tokens);
    losses.push_back(step.loss);
  }
  const std::vector<double> means = smoothed(losses, losses.size() / 60);
  std::string block;
  for (std::size_t i = 0; i < losses.size(); ++i) block += fmt::format("{}\t{}\t{}\n", tokens[i], losses[i], means[i]);
  return block;
}

// Columns: tokens in the unit, loss.
std::string held_out_block(const RunRecord& run, const std::string& source, const Unit& unit) {
  const auto& config = run.config;
  const auto step_tokens = static_cast<double>(config.train.global_batch * config.data.sequence_length);
  std::string block;
  for (const EvalMetrics& evaluation : run.evaluations) {
    if (evaluation.source != source || !std::isfinite(evaluation.loss)) continue;
    block += fmt::format("{}\t{}\n", static_cast<double>(evaluation.step) * step_tokens / unit.tokens, evaluation.loss);
  }
  return block;
}

// Blocks are separated by two empty lines, as gnuplot's `index` wants; empty ones are left out.
class DataFile {
 public:
  explicit DataFile(std::string columns) : text_("# " + columns + "\n") {}
  void add(Panel& panel, std::size_t run, const std::string& comment, const std::string& block) {
    if (block.empty()) return;
    panel.curves.push_back({run, blocks_});
    text_ += fmt::format("{}# {}\n{}", blocks_++ == 0 ? "" : "\n\n", comment, block);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  int blocks_ = 0;
};

std::string panel_text(const Panel& panel, std::span<const RunRecord> runs, bool legend) {
  std::vector<std::string> plots;
  if (panel.is_training) {
    for (const Curve& curve : panel.curves) {
      plots.push_back(fmt::format("'{}' index {} using 1:2 with lines lc rgb '#C8{}' lw 1 notitle", panel.file,
                                  curve.block, kColours[curve.run % kColours.size()] + 1));
    }
  }
  for (const Curve& curve : panel.curves) {
    const std::string title = legend ? "title " + gnuplot_text(runs[curve.run].name) : std::string("notitle");
    plots.push_back(fmt::format("'{}' index {} using 1:{} with {} lc rgb '{}' lw 2.5 dt {} {}", panel.file, curve.block,
                                panel.is_training ? 3 : 2, panel.is_training ? "lines" : "linespoints pt 7 ps 0.6",
                                kColours[curve.run % kColours.size()], 1 + curve.run / kColours.size(), title));
  }
  return fmt::format("  set title {}\n  set key {}\n  plot {}\n", gnuplot_text(panel.title),
                     legend ? "top right" : "off", fmt::join(plots, ", \\\n       "));
}

std::string script_text(std::span<const Panel> panels, std::span<const RunRecord> runs, const Unit& unit) {
  const int columns = panels.size() <= 3 ? static_cast<int>(panels.size()) : panels.size() == 4 ? 2 : 3;
  const int rows = (static_cast<int>(panels.size()) + columns - 1) / columns;
  const std::string size = fmt::format("size {},{}", columns * kPanelWidth, rows * kPanelHeight);
  std::string body;
  for (const Panel& panel : panels) body += panel_text(panel, runs, &panel == &panels.front());
  return fmt::format(R"(# Draws compare.svg and compare.png: gnuplot compare.gp
do for [kind in 'svg png'] {{
  if (kind eq 'svg') {{
    set terminal svg {0} font 'DejaVu Sans,12' background 'white'
  }} else {{
    set terminal pngcairo {0} font 'DejaVu Sans,10.5' background 'white'
  }}
  set output 'compare.'.kind
  set style line 100 lc rgb '#DDDDDD' lw 1
  set grid ls 100
  set border 3 lc rgb '#666666'
  set tics nomirror
  set xrange [0:*]
  set key font ',11' samplen 2 spacing 1.2
  set lmargin 8
  set xlabel '{1}'
  set ylabel 'loss (nats per token)'
  set format y '%.2g'
  set offsets 0, graph 0.02, graph 0.03, graph 0.03
  set multiplot layout {2},{3}
{4}  unset multiplot
  unset output
}}
)",
                     size, unit.name, rows, columns, body);
}

}  // namespace

Figure draw_comparison(std::span<const RunRecord> runs, const std::filesystem::path& folder) {
  const Unit unit = unit_for(runs);
  DataFile train(std::string(unit.name) + "\tloss\tsmoothed loss"), held_out(std::string(unit.name) + "\tloss");
  std::vector<Panel> panels = {{.title = "training", .file = "train.tsv", .curves = {}, .is_training = true}};
  for (std::size_t run = 0; run < runs.size(); ++run) {
    train.add(panels[0], run, runs[run].name, training_block(runs[run], unit));
  }
  for (const std::string& source : sources_of(runs)) {
    panels.push_back({.title = "held-out " + source, .file = "held_out.tsv", .curves = {}});
    for (std::size_t run = 0; run < runs.size(); ++run) {
      held_out.add(panels.back(), run, runs[run].name + ", " + source, held_out_block(runs[run], source, unit));
    }
  }
  std::erase_if(panels, [](const Panel& panel) { return panel.curves.empty(); });
  if (panels.empty()) fail(Status::input, "none of the runs has a loss to draw: train them first");
  std::filesystem::create_directories(folder);
  write_file(folder / "train.tsv", train.text());
  write_file(folder / "held_out.tsv", held_out.text());
  write_file(folder / "compare.gp", script_text(panels, runs, unit));
  run_gnuplot(folder, "compare.gp");
  return {.svg = folder / "compare.svg", .png = folder / "compare.png"};
}

}  // namespace dropcycle
