// The manifest as data and as text.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/checkpoint/checkpoint.hpp"

namespace dropcycle {

inline constexpr int kFormatVersion = 1;
inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kTokenizerFolder = "tokenizer";  // of a checkpoint
inline constexpr const char* kTokenizerFiles[] = {
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json",     "merges.txt",      "chat_template.jinja"};

struct Manifest {
  CheckpointInfo info;
  std::vector<FileEntry> files;
  std::vector<ParameterEntry> parameters;
  std::vector<AttachmentEntry> tokenizer_files;
};

// Sealed JSON (core/sealed.hpp).
std::string to_text(const Manifest& manifest);
// Checks the seal, every number and that slices tile their tensors and lie in their files. Throws Error{input} naming
// `path`. `complete` is false for the part of one rank, whose slices needn't be all.
Manifest parse_manifest(const std::string& text, const std::filesystem::path& path, bool complete = true);
// The ranks' parts together, parameters ordered by kind and name. Throws Error{internal} if ranks disagree.
Manifest merge(std::span<const Manifest> parts);

}  // namespace dropcycle
