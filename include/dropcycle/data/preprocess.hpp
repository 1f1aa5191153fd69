// Text to token shards: JSONL (plain, .gz, .zst) or text files, in parallel, with memory bounded whatever the input.
// The shards are the same whatever the number of workers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace dropcycle {

enum class TextSplit {
  files,  // a text file is one document
  lines,  // each line of it is one
};

struct PreprocessOptions {
  std::vector<std::string> inputs;  // files or globs; .jsonl and .json (and .gz, .zst of them) are JSONL, others text
  std::filesystem::path tokenizer;
  std::string output;  // prefix: <prefix>-00000.h5, ...; <prefix>.quarantine.jsonl
  std::string source;  // name kept in the shards; empty: the prefix's last part
  std::string text_key = "text";
  TextSplit split = TextSplit::files;
  bool append_eos = true, add_bos = false;
  bool strict = false;                         // any bad line is an error, after all were counted
  bool overwrite = false;                      // replace the shards that have this prefix already
  int workers = 0;                             // 0: every core
  std::uint64_t max_line_bytes = 8ULL << 20;   // longer lines (text files) are skipped and quarantined
  std::uint64_t max_shard_bytes = 1ULL << 30;  // a shard ends with the document that reaches it
};

struct PreprocessReport {
  std::uint64_t input_bytes = 0;  // of the files as they are
  std::uint64_t documents = 0, text_bytes = 0, tokens = 0;
  std::uint64_t broken_json = 0, no_text = 0, not_a_string = 0, invalid_utf8 = 0, too_long = 0;
  std::uint64_t bad() const { return broken_json + no_text + not_a_string + invalid_utf8 + too_long; }
  double seconds = 0;
  std::vector<std::filesystem::path> shards;
};

// Throws Error{input} (no input, a damaged .gz, bad lines under strict), Error{usage}, Error{storage}.
// Empty lines are passed over; an empty text is a document without ids.
PreprocessReport preprocess(const PreprocessOptions& options);

// Token files of Megatron-LM (MMapIndexedDataset, version 1): <prefix>.idx and <prefix>.bin.
//
//   idx   "MMIDIDX\0\0", version (uint64 = 1), type of a token (uint8: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64,
//         8 uint16), sequences n (uint64), document bounds m + 1 (uint64), tokens of each sequence (int32 [n]), byte of
//         each in the .bin (int64 [n]), first sequence of each document and n (int64 [m + 1]); little endian
//   bin   the tokens of all sequences, one after another
struct MegatronOptions {
  std::string prefix;
  std::filesystem::path tokenizer;  // names the shards' tokenizer and bounds the ids; or
  std::uint64_t vocabulary = 0;     // ids are below it; the shards then name no tokenizer
  std::string output, source;       // as above
  bool overwrite = false;
  std::uint64_t max_shard_bytes = 1ULL << 30U;
};

// The documents with their ids as they are, the sequences of each joined. Memory doesn't depend on the input's size.
// Throws Error{input} naming file, byte and what was expected: another magic, version or type, sizes that don't fit the
// files, sequences that don't lie one after another, bounds that don't ascend, ids outside the vocabulary.
PreprocessReport convert_megatron(const MegatronOptions& options);

}  // namespace dropcycle
