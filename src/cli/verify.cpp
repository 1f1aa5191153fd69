// dropcycle verify: is a file what it says it is?
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "conversion.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/core/progress.hpp"
#include "dropcycle/data/shard.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

namespace fs = std::filesystem;

// A result, shown at once: an error on the other stream may follow.
void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void verify_file(const fs::path& path) {
  const ShardReport report = verify_shard(path);
  if (!report.ok) throw Error(Status::input, report.message);
  say(report.message);
}

// Checks every digest of the checkpoint.
void verify_digests(Checkpoint& checkpoint) {
  Progress progress;
  checkpoint.verify([&](std::uint64_t done, std::uint64_t all) { progress.show_bytes("verifying", done, all); });
  const auto bytes = static_cast<double>(checkpoint.data_bytes());
  const std::string digest = checkpoint.digest("weight");
  say(fmt::format("{}: whole: {} tensors in {} files, step {}, {:.3f} GB, {:.2f} GB/s; digest {}",
                  checkpoint.folder().string(), checkpoint.parameters().size(), checkpoint.files().size(),
                  checkpoint.info().step, bytes * 1e-9, bytes * 1e-9 / progress.seconds(), digest));
}

std::string to_string(const DroppedBlock& block) {
  return fmt::format("layer {} expert {} {}: {} neurons, index set {}, mean {}, standard deviation {}", block.layer,
                     block.expert, name(block.matrix), block.neurons, block.index_digest, block.mean,
                     block.standard_deviation);
}

// Fails unless the checkpoint stores exactly `made` under the name and type of `spec`.
void compare_parameter(Checkpoint& checkpoint, const Receipt& receipt, const ParameterSpec& spec, const Tensor& made,
                       std::vector<std::byte>& memory) {
  memory.resize(static_cast<std::size_t>(made.bytes()));
  checkpoint.read("weight", whole(spec.name, Tensor(memory.data(), made.dtype, spec.shape)));
  const DType stored = checkpoint.find("weight", spec.name)->dtype;
  if (stored != made.dtype) {
    fail(Status::input, "{}: {} is {}, but the receipt's conversion makes it {}", checkpoint.folder().string(),
         spec.name, name(stored), name(made.dtype));
  }
  if (std::memcmp(memory.data(), made.data, memory.size()) != 0) {
    fail(Status::input, "{}: {} isn't what method {} with seed {} makes of the parent: the checkpoint was changed",
         checkpoint.folder().string(), spec.name, receipt.init.method, receipt.init.seed);
  }
}

// Fails unless the receipt is, to the last byte, what the conversion's own would be.
void compare_receipts(const Receipt& claimed, const Receipt& made, const std::string& text) {
  for (std::size_t i = 0; i < std::min(made.blocks.size(), claimed.blocks.size()); ++i) {
    if (to_string(made.blocks[i]) == to_string(claimed.blocks[i])) continue;
    fail(Status::input, "the receipt says '{}', but it is '{}'", to_string(claimed.blocks[i]),
         to_string(made.blocks[i]));
  }
  if (to_text(made) != text) fail(Status::input, "the receipt isn't the one of this conversion: it was changed");
}

// Recomputes the checkpoint (from its parent, unless it is from scratch) and compares every weight and the receipt.
void verify_conversion(Checkpoint& checkpoint, const Receipt& receipt, const std::string& text, Checkpoint* parent) {
  if (parent != nullptr && parent->digest("weight") != receipt.parent_digest) {
    fail(Status::input, "{} isn't the parent: the digest of its weights is {}, but the receipt says {}",
         parent->folder().string(), parent->digest("weight"), receipt.parent_digest);
  }
  Receipt again = receipt;
  const std::vector<ParameterSpec> specs = all_parameters(receipt.moe);
  if (specs.size() != checkpoint.parameters().size()) {
    fail(Status::input, "{}: holds {} tensors, but its model has {} parameters", checkpoint.folder().string(),
         checkpoint.parameters().size(), specs.size());
  }
  std::vector<std::byte> memory;
  std::uint64_t done = 0;
  Progress progress;
  convert_model(again, parent, specs, [&](std::size_t place, const Tensor& made) {
    compare_parameter(checkpoint, receipt, specs[place], made, memory);
    done += static_cast<std::uint64_t>(made.bytes());
    progress.show_bytes("recomputing", done, checkpoint.data_bytes());
  });
  compare_receipts(receipt, again, text);
  say(fmt::format("{}: is what its receipt says: all bits of {} parameters recomputed{}", checkpoint.folder().string(),
                  specs.size(), parent == nullptr ? "" : " from its parent"));
}

// Fails unless both hold the same weights in the same types: an import and its source do.
void compare_weights(Checkpoint& checkpoint, const std::string& parent_path) {
  Checkpoint parent = Checkpoint::open(find_checkpoint(parent_path));
  const std::string digest = checkpoint.digest("weight"), its_digest = parent.digest("weight");
  if (digest != its_digest) {
    fail(Status::input, "{}: has no receipt.json, and its weights (digest {}) aren't those of {} ({})",
         checkpoint.folder().string(), digest, parent_path, its_digest);
  }
  say(fmt::format("{}: holds the weights of {}, bit for bit", checkpoint.folder().string(), parent_path));
}

void verify_checkpoint(const fs::path& path, const std::string& parent_path) {
  Checkpoint checkpoint = Checkpoint::open(find_checkpoint(path));
  verify_digests(checkpoint);
  const fs::path receipt_path = checkpoint.folder() / "receipt.json";
  if (!fs::exists(receipt_path)) {
    if (!parent_path.empty()) compare_weights(checkpoint, parent_path);
    return;
  }
  const std::string text = read_file(receipt_path);
  const Receipt receipt = parse_receipt(text, receipt_path);
  if (receipt.checkpoint_digest != checkpoint.digest("weight") || origin_json(receipt) != checkpoint.info().origin ||
      to_toml(receipt.moe) != checkpoint.info().model) {
    fail(Status::input, "{}: belongs to another checkpoint: its digest, options or model aren't those of {}",
         receipt_path.string(), (checkpoint.folder() / "manifest.json").string());
  }
  if (receipt.init.method == "scratch") {
    verify_conversion(checkpoint, receipt, text, nullptr);
  } else if (!parent_path.empty()) {
    Checkpoint parent = Checkpoint::open(find_checkpoint(parent_path));
    verify_conversion(checkpoint, receipt, text, &parent);
  } else {
    say(fmt::format("{}: says method {} of the dense model with digest {}; --parent DENSE recomputes it",
                    checkpoint.folder().string(), receipt.init.method, receipt.parent_digest));
  }
}

}  // namespace

void add_verify(CLI::App& app) {
  struct Options {
    std::string path, parent;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("verify", "Check every digest of a checkpoint or a token shard");
  verb->add_option("PATH", options->path,
                   "A checkpoint, a run folder (its newest checkpoint), a Hugging Face folder or a token shard")
      ->required();
  verb->add_option("--parent", options->parent,
                   "The dense checkpoint or Hugging Face folder that this one says it was made from");
  verb->footer(
      "\nExamples:\n"
      "  dropcycle verify runs/drop/step_00000400\n"
      "  dropcycle verify models/drop --parent runs/dense\n"
      "  dropcycle verify shards/en-00000.h5");
  verb->callback([options] {
    const fs::path path = options->path;
    if (fs::is_directory(path)) {
      verify_checkpoint(path, options->parent);
    } else {
      verify_file(path);
    }
  });
}

}  // namespace dropcycle
