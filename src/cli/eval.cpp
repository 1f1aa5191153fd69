// dropcycle eval: held-out loss and perplexity of a checkpoint.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>

#include "dropcycle/eval/load_model.hpp"
#include "dropcycle/train/validation.hpp"
#include "verbs.hpp"
#include "with_runtime.hpp"

namespace dropcycle {
namespace {

struct EvalOptions {
  std::string checkpoint;
  std::vector<std::string> sources, overrides;
};

// "name=shards" to a source.
SourceConfig parse_source(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    fail(Status::usage, "--valid {}: expected NAME=SHARDS, e.g. --valid 'ja=shards/ja/valid/*.h5'", text);
  }
  return {.name = text.substr(0, equals), .shards = {text.substr(equals + 1)}};
}

Status evaluate(const EvalOptions& options, const Runtime& runtime) {
  Config config = config_of(options.checkpoint, options.overrides);
  if (!options.sources.empty()) config.data.valid.clear();
  for (const std::string& source : options.sources) config.data.valid.push_back(parse_source(source));
  resolve(config);
  if (config.data.valid.empty()) {
    fail(Status::usage, "{}: no held-out text is known: add --valid NAME=SHARDS", options.checkpoint);
  }
  Machine machine = make_machine(config, runtime);
  Checkpoint checkpoint = Checkpoint::open(find_checkpoint(options.checkpoint));
  const auto model = load_model(checkpoint, machine);
  Validation validation(config, machine.groups, checkpoint.info().tokenizer_digest);
  const bool root = runtime.rank() == 0;
  if (root) std::printf("%-16s %10s %12s %12s\n", "source", "loss", "perplexity", "tokens");
  double loss = 0, tokens = 0;
  for (std::size_t source = 0; source < validation.sources(); ++source) {
    const EvalMetrics result = validation.run(*model, source, checkpoint.info().step);
    loss += result.loss * static_cast<double>(result.tokens);
    tokens += static_cast<double>(result.tokens);
    if (!root) continue;
    std::printf("%-16s %10.6f %12.3f %12lld\n", result.source.c_str(), result.loss, result.perplexity(),
                static_cast<long long>(result.tokens));
    std::fflush(stdout);
  }
  if (root) std::printf("%-16s %10.6f %12.3f %12.0f\n", "all", loss / tokens, std::exp(loss / tokens), tokens);
  return Status::ok;
}

}  // namespace

void add_eval(CLI::App& app) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* verb = app.add_subcommand("eval", "Held-out loss and perplexity of a dense or MoE checkpoint");
  verb->add_option("CHECKPOINT", options->checkpoint,
                   "A checkpoint, a run folder (its newest one) or a Hugging Face folder")
      ->required();
  verb->add_option("--valid", options->sources, "Held-out text; repeatable (default: the run's data.valid)")
      ->type_name("NAME=SHARDS")
      ->allow_extra_args(false);
  add_set_option(*verb, options->overrides);
  verb->footer(
      "\nExamples:\n"
      "  dropcycle eval run/quickstart/drop\n"
      "  mpirun -n 2 dropcycle eval run/quickstart/drop --set parallel.expert=2 --valid 'ja=shards/ja/test/*.h5'");
  verb->callback([options] { with_runtime([&](const Runtime& runtime) { return evaluate(*options, runtime); }); });
}

}  // namespace dropcycle
