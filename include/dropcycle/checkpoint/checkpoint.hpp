// Models on disk, reading side: layout-free checkpoints, and the folders of Hugging Face's transformers
// (huggingface.hpp), which are read as checkpoints of "weight" alone wherever a model is asked for.
//
// A checkpoint is a folder `step_00000120`: one HDF5 file per writing rank and `manifest.json`, written last. The
// manifest lists every tensor by kind and global name with its slices; nothing depends on how many ranks wrote it, so
// that any layout reads what any other wrote. Kinds: "weight" (the master weights where training keeps them), "m" and
// "v" (AdamW's moments); a model-only checkpoint has "weight" alone, in f32, bf16 or f16.
//
// Every byte is covered by a digest: the manifest by its own, the data of each slice by the slice's, all other bytes of
// an HDF5 file by the file's structure digest. Reading goes by byte offsets of the manifest; HDF5 isn't asked to parse
// a file. A Hugging Face folder has no digests to check against: those of its tensors are computed where they are asked
// for, so that digest() of such a folder is that of the checkpoint that `import` makes of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dropcycle/core/dtype.hpp"
#include "dropcycle/core/sharded.hpp"

namespace dropcycle {

// What a checkpoint says about itself beside its tensors.
struct CheckpointInfo {
  std::int64_t step = 0;             // optimizer steps taken
  std::string model;                 // TOML of the model section (to_toml(ModelConfig))
  std::string config;                // TOML of the whole resolved configuration; empty for a converted model
  std::string data_position = "{}";  // JSON object: sample index, per-source counters
  std::uint64_t seed = 0;            // all randomness is a function of (seed, purpose, name, index)
  std::string tokenizer_digest;      // empty: unknown
  std::string origin = "{}";         // JSON object: how the weights came to be (upcycling options, parent's digest)
  // JSON object: what transformers' config.json and generation_config.json say beyond the model, for an export:
  // {"architecture": "LlamaForCausalLM", "config": {"max_position_embeddings": 4096, ...}, "generation_config": {...}}
  std::string huggingface = "{}";
  std::map<std::string, std::string> versions;  // program -> version; writing adds dropcycle, hdf5 and compiler
};

// A part of one tensor in one file.
struct SliceEntry {
  int file = 0;  // index into Checkpoint::files()
  Shape offset, shape;
  std::string dataset;            // path inside the HDF5 file
  std::uint64_t byte_offset = 0;  // of its data in the file
  std::string digest;             // XXH3-128 of its data; empty: unknown
};

struct ParameterEntry {
  std::string kind, name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<SliceEntry> slices;  // disjoint; together the whole tensor
};

struct FileEntry {
  std::string name;
  std::uint64_t size_bytes = 0;
  std::string structure_digest;  // of all bytes that belong to no slice, in file order; empty: unknown
};

// A small file that goes with the model: one of its tokenizer's.
struct AttachmentEntry {
  std::string name;  // "tokenizer.json"
  std::uint64_t size_bytes = 0;
  std::string digest;
};

class Checkpoint {
 public:
  // Reads and checks the manifest, and that every file is there with the right size and structure; of a Hugging Face
  // folder config.json and the headers of its files. Throws Error{input} naming file and reason. Opens in time
  // independent of the size of the data.
  static Checkpoint open(const std::filesystem::path& folder);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& folder() const { return folder_; }
  const CheckpointInfo& info() const { return info_; }
  const std::vector<FileEntry>& files() const { return files_; }
  const std::vector<ParameterEntry>& parameters() const { return parameters_; }  // ordered by kind, then name
  // Null if there is none.
  const ParameterEntry* find(std::string_view kind, std::string_view name) const;
  // Identifies the stored tensors of a kind: a digest over their names, types, shapes, slices and data digests. Reads
  // the data of slices whose digest isn't known yet.
  std::string digest(std::string_view kind);
  bool digests_known() const;

  // The tokenizer's files, if they are there; tokenizer_folder() is empty if not.
  const std::vector<AttachmentEntry>& tokenizer_files() const { return tokenizer_files_; }
  const std::filesystem::path& tokenizer_folder() const { return tokenizer_folder_; }
  // Throws Error{input} if the file isn't what its digest says.
  std::string read_tokenizer_file(const AttachmentEntry& file) const;
  // Writes the files into `folder`.
  void copy_tokenizer(const std::filesystem::path& folder) const;

  // Fills out.local, any part of the tensor, from whatever slices hold it, converted to out's type (core/convert.hpp).
  // The digest of every slice that is touched is checked the first time. Needs 4 MiB of memory.
  // Throws Error{input} naming parameter, file, dataset and byte range for damage, a missing parameter or another
  // shape.
  void read(std::string_view kind, const ShardedTensor& out);
  // The whole tensor in the type that it is stored in: take(data) for pieces of at most 4 MiB, in row-major order. All
  // digests are checked by the time the last piece is taken. Throws as read().
  void stream(const ParameterEntry& parameter, const std::function<void(std::span<const std::byte>)>& take);
  // Reads all data and checks all digests; progress(bytes done, bytes in all) after each slice.
  void verify(const std::function<void(std::uint64_t, std::uint64_t)>& progress = {});
  std::uint64_t data_bytes() const;

 private:
  Checkpoint() = default;
  int descriptor(int file);
  void check_structure();
  void read_slice(const ParameterEntry& parameter, std::size_t slice, const ShardedTensor& out);
  template <class Visit>
  void scan_slice(const ParameterEntry& parameter, std::size_t slice, std::int64_t begin, std::int64_t end,
                  std::byte* target, const Visit& visit);

  std::filesystem::path folder_, tokenizer_folder_;
  CheckpointInfo info_;
  std::vector<FileEntry> files_;
  std::vector<ParameterEntry> parameters_;
  std::vector<AttachmentEntry> tokenizer_files_;
  std::map<std::pair<std::string, std::string>, std::size_t, std::less<>> index_;
  std::vector<std::vector<bool>> verified_;  // [parameter][slice]
  std::vector<int> descriptors_;
};

// The ranks that save or load together. The default is a process alone.
struct RankGroup {
  int rank = 0, size = 1;
  // Collective: every rank's text, in rank order, on every rank.
  std::function<std::vector<std::string>(const std::string&)> all_gather_text = [](const std::string& text) {
    return std::vector<std::string>{text};
  };
};

// "step_00000120".
std::string checkpoint_name(std::int64_t step);
// Committed checkpoint folders (whole or not) of a run folder, newest first; none if the folder doesn't exist.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& run_folder);
// `path` itself if it is a checkpoint or a Hugging Face folder, else the newest one in it that opens; damaged ones are
// named in a warning. Throws Error{input} if there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
// Resume. Collective: tries the checkpoints of a run folder from the newest; `load` reads what this rank needs. One
// that fails with Error{input} on any rank is named in a warning and the next one is tried on all ranks. Returns the
// folder that was loaded, nothing if the run folder holds no checkpoint at all. Throws Error{input} on every rank if
// there are some but none can be loaded: a run is never started afresh silently.
std::optional<std::filesystem::path> load_newest(const std::filesystem::path& run_folder, const RankGroup& ranks,
                                                 const std::function<void(Checkpoint&)>& load);

}  // namespace dropcycle
