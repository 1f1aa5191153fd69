#include "dropcycle/upcycle/receipt.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/sealed.hpp"

namespace dropcycle {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kFormat = "dropcycle upcycling receipt";
constexpr FfnMatrix kMatrices[] = {FfnMatrix::gate, FfnMatrix::up, FfnMatrix::down};

// What stands in the manifest too.
Json options_json(const Receipt& receipt) {
  const InitConfig& init = receipt.init;
  return {{"method", init.method},
          {"ratio", init.ratio},
          {"index_sets", init.index_sets},
          {"noise_std", init.noise_std},
          {"router", init.router},
          {"seed", init.seed},
          {"dtype", name(receipt.dtype)},
          {"parent_digest", receipt.parent_digest},
          {"parent_step", receipt.parent_step}};
}

Json to_json(const DroppedBlock& block) {
  return {{"layer", block.layer},
          {"expert", block.expert},
          {"matrix", name(block.matrix)},
          {"neurons", block.neurons},
          {"index_digest", block.index_digest},
          {"mean", block.mean},
          {"standard_deviation", block.standard_deviation}};
}

FfnMatrix parse_matrix(const std::string& text) {
  for (const FfnMatrix matrix : kMatrices) {
    if (text == name(matrix)) return matrix;
  }
  fail(Status::input, "unknown matrix '{}'", text);
}

// How many of the neurons that neither drops.
std::int64_t both_kept(const std::vector<bool>& a, const std::vector<bool>& b) {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < a.size(); ++i) count += a[i] && b[i];
  return count;
}

// One row of the table: a layer's blocks, averaged over experts.
std::string describe_layer(const Receipt& receipt, std::int64_t layer) {
  std::string row = fmt::format("{:>5}", layer);
  std::int64_t neurons = 0;
  std::string columns;
  for (const FfnMatrix matrix : kMatrices) {
    double mean = 0, deviation = 0;
    std::int64_t count = 0;
    for (const DroppedBlock& block : receipt.blocks) {
      if (block.layer != layer || block.matrix != matrix) continue;
      mean += block.mean;
      deviation += block.standard_deviation;
      neurons = block.neurons;
      ++count;
    }
    const double divisor = static_cast<double>(std::max<std::int64_t>(count, 1));
    columns += fmt::format("  {:>10.2e} {:>9.5f}", mean / divisor, deviation / divisor);
  }
  return row + fmt::format("  {:>6} of {:>6}", neurons, receipt.moe.intermediate_size) + columns + "\n";
}

}  // namespace

std::optional<double> measured_kept_share(const ModelConfig& moe, const InitConfig& init) {
  if (moe.experts < 2) return std::nullopt;
  const auto neurons = static_cast<std::size_t>(moe.intermediate_size);
  std::int64_t common = 0, pairs = 0;
  for (std::int64_t layer = 0; layer < moe.layers; ++layer) {
    for (const FfnMatrix matrix : kMatrices) {
      if (init.index_sets == "shared" && matrix != FfnMatrix::gate) continue;
      std::vector<std::vector<bool>> kept;
      for (std::int64_t expert = 0; expert < moe.experts; ++expert) {
        kept.emplace_back(neurons, true);
        for (const std::int64_t index : index_set(init, moe.intermediate_size, layer, expert, matrix)) {
          kept.back()[static_cast<std::size_t>(index)] = false;
        }
        for (std::size_t other = 0; other + 1 < kept.size(); ++other) {
          common += both_kept(kept[other], kept.back());
          ++pairs;
        }
      }
    }
  }
  return static_cast<double>(common) / static_cast<double>(pairs) / static_cast<double>(neurons);
}

double expected_kept_share(const ModelConfig& moe, const InitConfig& init) {
  const auto neurons = static_cast<double>(moe.intermediate_size);
  const std::int64_t dropped = init.method == "naive" ? 0 : dropped_neurons(init.ratio, moe.intermediate_size);
  const double kept = (neurons - static_cast<double>(dropped)) / neurons;
  return kept * kept;
}

std::string origin_json(const Receipt& receipt) { return options_json(receipt).dump(); }

std::string to_text(const Receipt& receipt) {
  Json json = {{"format", kFormat}, {"format_version", 1}};
  json.update(options_json(receipt));
  json["parent"] = receipt.init.from;
  json["checkpoint_digest"] = receipt.checkpoint_digest;
  json["dense_model"] = to_toml(receipt.dense);
  json["model"] = to_toml(receipt.moe);
  if (receipt.init.method != "scratch") {
    const auto measured = measured_kept_share(receipt.moe, receipt.init);
    json["kept_by_two_experts"] = {{"expected", expected_kept_share(receipt.moe, receipt.init)},
                                   {"measured", measured ? Json(*measured) : Json()}};
  }
  if (receipt.losses) {
    json["losses"] = {{"tokens", receipt.losses->tokens},
                      {"dense", receipt.losses->dense},
                      {"moe", receipt.losses->moe},
                      {"load_entropy", receipt.losses->load_entropy},
                      {"balanced_load_entropy", std::log(static_cast<double>(receipt.moe.experts))}};
  }
  json["blocks"] = Json::array();
  for (const DroppedBlock& block : receipt.blocks) json["blocks"].push_back(to_json(block));
  return seal(json.dump(1));
}

Receipt parse_receipt(const std::string& text, const std::filesystem::path& path) {
  check_seal(text, path);
  try {
    const Json json = Json::parse(text);
    if (json.at("format") != kFormat || json.at("format_version") != 1) {
      fail(Status::input, "format {} version {}", json.at("format").dump(), json.at("format_version").dump());
    }
    Receipt receipt;
    receipt.dense = parse_model(json.at("dense_model"));
    receipt.moe = parse_model(json.at("model"));
    receipt.init.method = json.at("method");
    receipt.init.from = json.at("parent");
    receipt.init.ratio = json.at("ratio");
    receipt.init.index_sets = json.at("index_sets");
    receipt.init.noise_std = json.at("noise_std");
    receipt.init.router = json.at("router");
    receipt.init.seed = json.at("seed");
    receipt.dtype = parse_dtype(json.at("dtype").get<std::string>());
    receipt.parent_digest = json.at("parent_digest");
    receipt.parent_step = json.at("parent_step");
    receipt.checkpoint_digest = json.at("checkpoint_digest");
    for (const Json& block : json.at("blocks")) {
      receipt.blocks.push_back({block.at("layer"), block.at("expert"), parse_matrix(block.at("matrix")),
                                block.at("neurons"), block.at("index_digest"), block.at("mean"),
                                block.at("standard_deviation")});
    }
    if (json.contains("losses")) {
      const Json& losses = json.at("losses");
      receipt.losses = {losses.at("tokens"), losses.at("dense"), losses.at("moe"), losses.at("load_entropy")};
    }
    return receipt;
  } catch (const std::exception& exception) {
    fail(Status::input, "{}: not a receipt that this program wrote: {}", path.string(), exception.what());
  }
}

std::string describe(const Receipt& receipt) {
  const InitConfig& init = receipt.init;
  std::string text = fmt::format("method {}", init.method);
  if (init.method == "drop" || init.method == "noise") {
    text += fmt::format(", r = {}, {} index sets", init.ratio, init.index_sets);
  }
  if (init.method == "noise") text += fmt::format(", noise {}", init.noise_std);
  text += fmt::format(", {} experts, {} per token, router {}, seed {}, {}\n", receipt.moe.experts,
                      receipt.moe.experts_per_token, init.router, init.seed, name(receipt.dtype));
  if (init.method == "scratch") return text;
  text += fmt::format("parent {} (step {}, digest {})\n", init.from, receipt.parent_step, receipt.parent_digest);
  if (init.method != "naive") {
    text += fmt::format("\n{:>5}  {:>16}  {:>20}  {:>20}  {:>20}\n{:>5}  {:>16}", "layer", "neurons redrawn",
                        "gate, dropped block", "up", "down", "", "per expert");
    for (int matrix = 0; matrix < 3; ++matrix) text += fmt::format("  {:>10} {:>9}", "mean", "std");
    text += "\n";
    for (std::int64_t layer = 0; layer < receipt.moe.layers; ++layer) text += describe_layer(receipt, layer);
  }
  if (const auto measured = measured_kept_share(receipt.moe, init)) {
    text += fmt::format("\nneurons that two experts both keep: {:.4f} measured, {:.4f} expected\n", *measured,
                        expected_kept_share(receipt.moe, init));
  }
  if (receipt.losses) {
    const ReceiptLosses& losses = *receipt.losses;
    double entropy = 0;
    for (const double layer : losses.load_entropy) entropy += layer / static_cast<double>(losses.load_entropy.size());
    text += fmt::format("held-out loss on {} tokens: dense {:.4f}, MoE {:.4f} ({:+.4f})\n", losses.tokens, losses.dense,
                        losses.moe, losses.moe - losses.dense);
    text += fmt::format("router: entropy of the experts' load {:.3f} of {:.3f} nats (mean over layers)\n", entropy,
                        std::log(static_cast<double>(receipt.moe.experts)));
  }
  return text;
}

}  // namespace dropcycle
