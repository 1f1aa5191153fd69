// dropcycle inspect: what a token shard or a checkpoint says about itself.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>

#include "dropcycle/checkpoint/checkpoint.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/data/shard.hpp"
#include "dropcycle/data/tokenizer.hpp"
#include "dropcycle/model/cost.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

struct InspectOptions {
  fs::path path, tokenizer;
  std::uint64_t documents = 3;
  bool tensors = false;
};

void inspect_shard(const InspectOptions& options) {
  std::unique_ptr<Tokenizer> tokenizer;
  if (!options.tokenizer.empty()) tokenizer = std::make_unique<Tokenizer>(options.tokenizer);
  std::fputs(describe_shard(options.path, tokenizer.get(), options.documents).c_str(), stdout);
}

void print_field(const std::string& name, const std::string& value) {
  std::printf("%-16s %s\n", name.c_str(), value.empty() ? "-" : value.c_str());
}

// "weight: 40 tensors, bf16 and f32, 81.2 MB" for each kind.
void print_kinds(const Checkpoint& checkpoint) {
  struct Kind {
    std::int64_t tensors = 0, bytes = 0;
    std::map<std::string_view, int> dtypes;
  };
  std::map<std::string, Kind> kinds;
  for (const ParameterEntry& parameter : checkpoint.parameters()) {
    Kind& kind = kinds[parameter.kind];
    ++kind.tensors;
    ++kind.dtypes[name(parameter.dtype)];
    kind.bytes += parameter.shape.elements() * size_bytes(parameter.dtype);
  }
  for (const auto& [kind_name, kind] : kinds) {
    std::string dtypes;
    for (const auto& [dtype, count] : kind.dtypes) dtypes += (dtypes.empty() ? "" : " and ") + std::string(dtype);
    print_field(kind_name, fmt::format("{} tensors in {}, {:.1f} MB", kind.tensors, dtypes,
                                       static_cast<double>(kind.bytes) / 1e6));
  }
}

void print_tensors(const Checkpoint& checkpoint) {
  std::printf("\n");
  for (const ParameterEntry& parameter : checkpoint.parameters()) {
    std::printf("%-8s %-40s %-5s %s in %zu slice%s\n", parameter.kind.c_str(), parameter.name.c_str(),
                std::string(name(parameter.dtype)).c_str(), to_string(parameter.shape).c_str(), parameter.slices.size(),
                parameter.slices.size() == 1 ? "" : "s");
  }
}

void inspect_checkpoint(const InspectOptions& options) {
  Checkpoint checkpoint = Checkpoint::open(find_checkpoint(options.path));
  const CheckpointInfo& info = checkpoint.info();
  const ModelConfig model = parse_model(info.model);
  const ParameterCount count = count_parameters(model);
  print_field("checkpoint", checkpoint.folder().string());
  print_field("step", fmt::format("{}", info.step));
  print_field("parameters", count.active == count.total
                                ? fmt::format("{}", count.total)
                                : fmt::format("{}, {} of them active", count.total, count.active));
  print_kinds(checkpoint);
  print_field("files", fmt::format("{}, {:.1f} MB of data", checkpoint.files().size(),
                                   static_cast<double>(checkpoint.data_bytes()) / 1e6));
  print_field("weights' digest", checkpoint.digests_known() ? checkpoint.digest("weight") : "verify computes it");
  print_field("tokenizer", info.tokenizer_digest);
  print_field("origin", info.origin == "{}" ? "" : info.origin);
  print_field("Hugging Face", info.huggingface == "{}" ? "" : info.huggingface);
  print_field("data position", info.data_position == "{}" ? "" : info.data_position);
  for (const auto& [program, version] : info.versions) print_field(program, version);
  std::printf("\n%s", (info.config.empty() ? info.model : info.config).c_str());
  if (options.tensors) print_tensors(checkpoint);
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* verb = app.add_subcommand("inspect", "Show what a token shard or a checkpoint holds");
  verb->add_option("PATH", options->path,
                   "A token shard, a checkpoint, a run folder (its newest checkpoint) or a Hugging Face folder")
      ->required();
  verb->add_option("--tokenizer", options->tokenizer, "Shard: show documents as text by this tokenizer");
  verb->add_option("--documents", options->documents, "Shard: how many documents to show")->capture_default_str();
  verb->add_flag("--tensors", options->tensors, "Checkpoint: list every tensor");
  verb->footer(
      "\nExamples:\n"
      "  dropcycle inspect shards/en-00000.h5 --tokenizer tok.model\n"
      "  dropcycle inspect run/quickstart/drop --tensors");
  verb->callback([options] {
    if (fs::is_directory(options->path)) {
      inspect_checkpoint(*options);
    } else {
      inspect_shard(*options);
    }
  });
}

}  // namespace dropcycle
