// dropcycle compare: runs side by side.
#include "dropcycle/report/compare.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "verbs.hpp"

namespace dropcycle {

void add_compare(CLI::App& app) {
  struct Options {
    std::vector<std::filesystem::path> runs;
    std::filesystem::path output = "run/compare";
    bool no_figure = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("compare", "A table and loss curves of several runs");
  verb->add_option("RUN", options->runs, "Run folders (train.output)")->required()->type_name("FOLDER");
  verb->add_option("--output", options->output, "Folder for compare.svg, compare.png and their data")
      ->capture_default_str()
      ->type_name("FOLDER");
  verb->add_flag("--no-figure", options->no_figure, "Print the table only");
  verb->footer(
      "\nThe table has the held-out loss of each source at a run's first and last evaluation, and its median speed.\n"
      "Example:\n"
      "  dropcycle compare run/quickstart/scratch run/quickstart/naive run/quickstart/drop");
  verb->callback([options] {
    const std::vector<RunRecord> runs = read_runs(options->runs);
    std::fputs(comparison_table(runs).c_str(), stdout);
    std::fflush(stdout);
    if (options->no_figure) return;
    const Figure figure = draw_comparison(runs, options->output);
    std::printf("\nLoss curves: %s and %s\n", figure.png.c_str(), figure.svg.c_str());
  });
}

}  // namespace dropcycle
