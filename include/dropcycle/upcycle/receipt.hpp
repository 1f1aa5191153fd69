// The receipt of a converted model: what was asked for, what it was made from, and what came out, so that anybody with
// the dense parent can check it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/core/dtype.hpp"
#include "dropcycle/upcycle/upcycle.hpp"

namespace dropcycle {

// Measured on held-out tokens, in nats.
struct ReceiptLosses {
  std::int64_t tokens = 0;
  double dense = 0, moe = 0;         // mean loss per token
  std::vector<double> load_entropy;  // per layer, of the experts' shares of the choices; ln E is balanced
};

struct Receipt {
  ModelConfig dense, moe;
  InitConfig init;  // init.from: the parent's folder
  DType dtype = DType::f32;
  std::string parent_digest;  // Checkpoint::digest("weight") of the dense parent; empty for scratch
  std::int64_t parent_step = 0;
  std::string checkpoint_digest;  // Checkpoint::digest("weight") of the MoE
  std::vector<DroppedBlock> blocks;
  std::optional<ReceiptLosses> losses;
};

// Mean over layers, matrices and pairs of experts of the share of neurons that both keep: with independent S near
// (1 - |S|/F)². Nothing for one expert.
std::optional<double> measured_kept_share(const ModelConfig& moe, const InitConfig& init);
double expected_kept_share(const ModelConfig& moe, const InitConfig& init);

// Sealed JSON (core/sealed.hpp).
std::string to_text(const Receipt& receipt);
// Throws Error{input} naming `path`.
Receipt parse_receipt(const std::string& text, const std::filesystem::path& path);
// The options and the parent as a JSON object, for a checkpoint's manifest.
std::string origin_json(const Receipt& receipt);
// For people: options, one row per layer, shares and losses.
std::string describe(const Receipt& receipt);

}  // namespace dropcycle
