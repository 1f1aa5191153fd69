// dropcycle train: runs a configuration.
#include "dropcycle/train/trainer.hpp"

#include <CLI/CLI.hpp>
#include <memory>

#include "verbs.hpp"
#include "with_runtime.hpp"

namespace dropcycle {

void add_train(CLI::App& app) {
  struct Options {
    std::string file, resume = "never";
    std::vector<std::string> overrides;
    bool profile = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("train", "Train a dense or MoE model, on one process or under mpirun");
  verb->add_option("CONFIG", options->file, "A TOML file")->required();
  add_set_option(*verb, options->overrides);
  verb->add_option("--resume", options->resume,
                   "auto: go on from the newest whole checkpoint of train.output, afresh if there is none")
      ->check(CLI::IsMember({"never", "auto"}))
      ->capture_default_str();
  verb->add_flag("--profile", options->profile,
                 "Where the time goes: a table by phase and operation at the end, and trace.json in the run folder for "
                 "ui.perfetto.dev or chrome://tracing");
  verb->footer(
      "\nSIGTERM or SIGUSR1 commits a checkpoint after the current step and exits with 75.\n\nExamples:\n"
      "  dropcycle train configs/experiment/quickstart_dense.toml\n"
      "  mpirun -n 2 dropcycle train configs/experiment/quickstart_drop.toml --resume auto --set init.ratio=0.25");
  verb->callback([options] {
    with_runtime([&](const Runtime& runtime) {
      Config config = load_config(options->file, options->overrides);
      resolve(config);
      return train(config, runtime, options->resume == "auto" ? Resume::automatic : Resume::never, options->profile);
    });
  });
}

}  // namespace dropcycle
