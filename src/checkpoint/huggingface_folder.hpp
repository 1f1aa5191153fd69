// A Hugging Face folder as what a checkpoint's manifest says.
#pragma once

#include <filesystem>
#include <vector>

#include "manifest.hpp"

namespace dropcycle {

// Whether the folder holds a config.json and no manifest of ours.
bool is_huggingface(const std::filesystem::path& folder);

// Our parameters as slices of the folder's files, digests unknown. Nothing is read but the small files, the headers,
// and, where a model with tied embeddings has a head in its files all the same, these two. `descriptors` gets the
// opened files, the caller's to close. Throws Error{input} naming file and tensor.
Manifest read_huggingface(const std::filesystem::path& folder, std::vector<int>& descriptors);

}  // namespace dropcycle
