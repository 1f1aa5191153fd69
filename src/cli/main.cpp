#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <new>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/suggest.hpp"
#include "dropcycle/parallel/runtime.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

constexpr const char* kDescription =
    "Trains dense Llama and Mixtral-style mixture-of-experts language models with MPI,\n"
    "and turns a trained dense model into a mixture of experts by Drop-Upcycling.";

constexpr const char* kFooter = R"(
From text to a compared pair of models:
  dropcycle tokenizer train --vocab-size 16384 --output tok.model text/*.jsonl
  dropcycle preprocess --tokenizer tok.model --output shards/en text/en.train.jsonl
  dropcycle train configs/experiment/quickstart_dense.toml
  mpirun -n 2 dropcycle train configs/experiment/quickstart_drop.toml
  dropcycle compare runs/*

`dropcycle VERB --help` explains a verb, `dropcycle config` every configuration key.

Exit status:
   0  done
   1  a broken invariant: a bug in dropcycle
   2  wrong option, configuration key, value or layout
   3  missing, damaged or unfitting input (shard, checkpoint, tokenizer, text)
   4  writing failed (disk full, quota, I/O error)
   5  NaN or infinity in the loss or in gradients
   6  another rank failed, or the ranks disagree
  75  stopped on request after a checkpoint: run the same command again to go on)";

int fail_with(Status status, std::string message) {
  Runtime::let_rank_0_speak();
  std::ranges::replace(message, '\n', ' ');
  std::fprintf(stderr, "dropcycle: error: %s\n", message.c_str());
  return static_cast<int>(status);
}

std::vector<std::string> verb_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(verb->get_name());
  }
  return names;
}

// The option names of the verb (and its own verb, if any) that was being parsed.
std::vector<std::string> option_names(const CLI::App& app) {
  const CLI::App* verb = &app;
  while (!verb->get_subcommands().empty()) verb = verb->get_subcommands().front();
  std::vector<std::string> names = verb_names(*verb);
  for (const CLI::Option* option : verb->get_options([](const CLI::Option*) { return true; })) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

int report_usage(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> extra = app.remaining(true);
  if (!extra.empty()) {
    const std::string word = extra.front().substr(0, extra.front().find('='));
    const std::string kind = word.starts_with('-') ? "option" : app.get_subcommands().empty() ? "verb" : "argument";
    std::string hint = did_you_mean(word, option_names(app));
    if (hint.empty()) hint = ": --help shows what there is";
    return fail_with(Status::usage, fmt::format("unknown {} '{}'{}", kind, word, hint));
  }
  return fail_with(Status::usage, fmt::format("{} (--help shows how)", error.what()));
}

int run(int argc, char** argv) {
  CLI::App app(kDescription, "dropcycle");
  app.set_version_flag("--version", "dropcycle " DROPCYCLE_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  app.get_formatter()->column_width(28);
  add_tokenizer(app);
  add_preprocess(app);
  add_inspect(app);
  add_verify(app);
  add_import(app);
  add_upcycle(app);
  add_export(app);
  add_compare(app);
  add_config(app);
  add_plan(app);
  add_train(app);
  add_bench(app);
  add_eval(app);
  add_generate(app);
  try {
    app.parse(argc, argv);
    return static_cast<int>(verb_status());
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return report_usage(app, error);
  }
}

}  // namespace

Status& verb_status() {
  static Status status = Status::ok;
  return status;
}

int report(const Error& error, int rank) {
  const std::string prefix = rank < 0 ? "" : fmt::format("rank {}: ", rank);
  if (error.status() == Status::requeue) {
    std::fprintf(stderr, "dropcycle: %s%s\n", prefix.c_str(), error.what());
    return static_cast<int>(error.status());
  }
  return fail_with(error.status(), prefix + error.what());
}

}  // namespace dropcycle

int main(int argc, char** argv) {
  using namespace dropcycle;
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    return report(error);
  } catch (const std::bad_alloc&) {
    return fail_with(Status::internal, "out of memory: choose a smaller model, micro_batch or sequence_length");
  } catch (const std::exception& error) {
    return fail_with(Status::internal, std::string(error.what()) + " (a bug in dropcycle: please report it)");
  }
}
