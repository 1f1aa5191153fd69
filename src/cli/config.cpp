// dropcycle config: what can be configured, and what a file comes to.
#include "dropcycle/core/config.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "verbs.hpp"

namespace dropcycle {

void add_set_option(CLI::App& verb, std::vector<std::string>& overrides) {
  verb.add_option("--set", overrides, "Override a key of the configuration; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

void add_config(CLI::App& app) {
  struct Options {
    std::string file;
    std::vector<std::string> overrides;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("config", "Print every configuration key, or what a configuration file comes to");
  verb->add_option("FILE", options->file, "A TOML file: print its resolved configuration");
  add_set_option(*verb, options->overrides);
  verb->footer(
      "\nExamples:\n"
      "  dropcycle config | grep optimizer\n"
      "  dropcycle config configs/experiment/moe_8x152m_drop.toml --set train.output=runs/drop");
  verb->callback([options] {
    if (options->file.empty() && options->overrides.empty()) {
      std::fputs(describe_config().c_str(), stdout);
      return;
    }
    Config config =
        options->file.empty() ? parse_config(options->overrides) : load_config(options->file, options->overrides);
    resolve(config);
    std::fputs(to_toml(config).c_str(), stdout);
  });
}

}  // namespace dropcycle
