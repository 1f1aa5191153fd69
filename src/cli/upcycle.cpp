// dropcycle upcycle: a dense checkpoint into an MoE checkpoint with a receipt.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "conversion.hpp"
#include "dropcycle/checkpoint/writer.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/progress.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

struct Options {
  std::string dense, output, dtype = "f32";
  InitConfig init{.method = "drop"};
  std::int64_t experts = 8, experts_per_token = 2;
};

Receipt plan(const Options& options, const Checkpoint& dense) {
  Receipt receipt;
  receipt.dense = parse_model(dense.info().model);
  receipt.moe = receipt.dense;
  receipt.moe.experts = options.experts;
  receipt.moe.experts_per_token = options.experts_per_token;
  resolve(receipt.moe);
  receipt.init = options.init;
  receipt.init.from = dense.folder().string();
  receipt.dtype = parse_dtype(options.dtype);
  receipt.parent_digest = options.init.method == "scratch" ? "" : dense.digest("weight");
  receipt.parent_step = dense.info().step;
  check_fits(receipt.dense, receipt.moe);
  dropped_neurons(receipt.init.ratio, receipt.moe.intermediate_size);
  return receipt;
}

// Writes the checkpoint; the number of bytes.
std::uint64_t write_checkpoint(Receipt& receipt, Checkpoint& dense, const std::filesystem::path& output) {
  const std::vector<ParameterSpec> specs = all_parameters(receipt.moe);
  std::vector<SliceSpec> slices;
  std::uint64_t all = 0, done = 0;
  for (const ParameterSpec& spec : specs) {
    Shape origin = spec.shape;
    for (int dim = 0; dim < origin.dims(); ++dim) origin.set(dim, 0);
    slices.push_back({"weight", spec.name, stored_dtype(spec, receipt.dtype), spec.shape, origin, spec.shape});
    all += static_cast<std::uint64_t>(slices.back().size_bytes());
  }
  Progress progress;
  CheckpointStream stream(output, std::move(slices));
  convert_model(receipt, &dense, specs, [&](std::size_t place, const Tensor& tensor) {
    stream.write(place, tensor.data);
    done += static_cast<std::uint64_t>(tensor.bytes());
    progress.show_bytes("upcycling", done, all);
  });
  CheckpointInfo info;
  info.model = to_toml(receipt.moe);
  info.seed = receipt.init.seed;
  info.tokenizer_digest = dense.info().tokenizer_digest;
  info.origin = origin_json(receipt);
  stream.commit(info);
  return all;
}

void upcycle(const Options& options) {
  const Progress::Clock::time_point start = Progress::Clock::now();
  Checkpoint dense = Checkpoint::open(find_checkpoint(options.dense));
  Receipt receipt = plan(options, dense);
  const std::uint64_t bytes = write_checkpoint(receipt, dense, options.output);
  const double seconds = std::chrono::duration<double>(Progress::Clock::now() - start).count();
  receipt.checkpoint_digest = Checkpoint::open(options.output).digest("weight");
  write_file(std::filesystem::path(options.output) / "receipt.json", to_text(receipt));
  std::printf("%s%s: %.3f GB in %.1f s, %.2f GB/s; receipt.json says how\n", describe(receipt).c_str(),
              options.output.c_str(), static_cast<double>(bytes) * 1e-9, seconds,
              static_cast<double>(bytes) * 1e-9 / seconds);
}

}  // namespace

void add_upcycle(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("upcycle", "Turn a dense checkpoint into a mixture of experts");
  InitConfig& init = options->init;
  verb->add_option("DENSE", options->dense, "A dense checkpoint, or a run folder (its newest one)")->required();
  verb->add_option("--output", options->output, "Folder of the new checkpoint; must not hold anything")->required();
  verb->add_option("--method", init.method, "drop (Drop-Upcycling), naive (copies), noise (copies + noise) or scratch")
      ->check(CLI::IsMember({"drop", "naive", "noise", "scratch"}))
      ->capture_default_str();
  verb->add_option("--ratio", init.ratio, "r: share of each expert's neurons that are redrawn, 0 to 1")
      ->capture_default_str();
  verb->add_option("--experts", options->experts, "E")->capture_default_str();
  verb->add_option("--experts-per-token", options->experts_per_token, "K")->capture_default_str();
  verb->add_option("--seed", init.seed, "Of index sets, redrawn weights and router")->capture_default_str();
  verb->add_option("--index-sets", init.index_sets,
                   "shared: one set for gate, up and down (the paper); per_matrix: one each (the authors' script)")
      ->check(CLI::IsMember({"shared", "per_matrix"}))
      ->capture_default_str();
  verb->add_option("--noise-std", init.noise_std, "Standard deviation of the noise method")->capture_default_str();
  verb->add_option("--router", init.router, "Distribution of the router's weights (the paper's Table 8)")
      ->check(CLI::IsMember({"normal_002", "normal_02887", "uniform_002", "uniform_05", "uniform_01"}))
      ->capture_default_str();
  verb->add_option("--dtype", options->dtype, "Type of the new weights (norms and router stay f32)")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  verb->footer(
      "\nExamples:\n"
      "  dropcycle upcycle runs/dense --output models/drop --ratio 0.5 --experts 8\n"
      "  dropcycle verify models/drop --parent runs/dense");
  verb->callback([options] { upcycle(*options); });
}

}  // namespace dropcycle
