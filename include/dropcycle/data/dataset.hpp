// Training and validation samples from token shards.
//
// A source is its shards' documents one after another: N tokens. Window w of it is the S + 1 tokens from w*S on, of
// which the first S are the inputs and the last S the targets, so there are W = floor((N - 1) / S) windows and every
// token but the first is a target at most once a pass. Documents are packed: a window may hold the end of one and the
// start of the next.
// Sample i is a pure function of (seed, i): Blend names the source and how many samples n of it came before; then
//   epoch = n / W,   w = permuted_index(RandomStream(seed, shuffle, source, epoch), W, n % W).
// Nothing is built at start-up.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"

namespace dropcycle {

// One sequence: the caller's arrays of S values each.
struct Sample {
  std::span<std::int32_t> tokens;     // inputs
  std::span<std::int32_t> targets;    // the next token; -1 counts for nothing
  std::span<std::int32_t> positions;  // place in the sequence; in the document under reset_at_document_end
  std::span<std::int32_t> first_key;  // the token attends to places first_key..own of the sequence; 0, or its
                                      // document's first place under reset_at_document_end
};

// Where a sample comes from, for messages.
struct SampleOrigin {
  std::size_t source = 0;
  std::uint64_t epoch = 0, window = 0;
  std::string file;                                     // the shard of the first token
  std::uint64_t first_document = 0, last_document = 0;  // counted within their shards
};
// "source ja, window 17 of pass 2, documents 3..5 of /data/ja-00000.h5".
std::string to_string(const SampleOrigin& origin, const std::string& source);

struct SourceCounter {
  std::string name;
  std::uint64_t samples = 0, tokens = 0;  // drawn so far
  double passes = 0;                      // samples / W: over 1, the source is being repeated
};

// The data position that a checkpoint saves. Resuming with the same mixture goes on exactly; with another mixture,
// each source goes on where it stood.
struct DataState {
  struct Source {
    std::string name;
    double weight = 0;
    std::uint64_t samples = 0;  // drawn before sample `origin`
    std::string content;        // digest over the shards' content digests
  };
  std::int64_t sequence_length = 0;
  std::uint64_t seed = 0;
  std::uint64_t origin = 0;   // the sample at which this mixture began
  std::uint64_t samples = 0;  // drawn so far over all sources: the next sample's index
  std::vector<Source> sources;

  std::string to_json() const;
  // Throws Error{input}.
  static DataState from_json(const std::string& text);
};

class Dataset {
 public:
  // Opens every shard of config.train. `tokenizer_digest` empty: not compared, but all shards must agree.
  // `resume`: the state of the checkpoint that is gone on from. A source whose content changed under the same name is
  // refused. Throws Error{input} (missing, truncated or unfitting shard, ids beyond `model_vocabulary`, too few
  // tokens) or Error{usage} (weights).
  Dataset(const DataConfig& config, std::int64_t model_vocabulary, const std::string& tokenizer_digest = "",
          const DataState* resume = nullptr);
  ~Dataset();
  Dataset(Dataset&&) noexcept;

  std::int64_t sequence_length() const;  // S
  // Fills `sample` with sample `index`. Thread safe. Throws Error{input} for a damaged block.
  void read(std::uint64_t index, const Sample& sample) const;
  // As text for messages (NaN loss).
  std::string describe(std::uint64_t index) const;
  SampleOrigin origin(std::uint64_t index) const;
  // Before sample `samples`.
  std::vector<SourceCounter> counters(std::uint64_t samples) const;
  DataState state(std::uint64_t samples) const;
  // The next sample of the run that `resume` belongs to; 0 for a new one.
  std::uint64_t first_sample() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The held-out tokens of one source, in order: window w is predicted from tokens [w*S, w*S + S); the last is padded
// with target -1. Every token but the source's first (and, under reset_at_document_end, each document's first) is
// predicted exactly once.
class ValidationSet {
 public:
  ValidationSet(const SourceConfig& source, const DataConfig& config, std::int64_t model_vocabulary,
                const std::string& tokenizer_digest = "");
  ~ValidationSet();
  ValidationSet(ValidationSet&&) noexcept;

  const std::string& name() const;
  std::uint64_t windows() const;  // ceil((N - 1) / S)
  std::uint64_t tokens() const;   // N
  // Returns how many targets count.
  std::int64_t read(std::uint64_t window, const Sample& sample) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// B sequences: arrays of B*S values, sequence after sequence.
struct Batch {
  std::uint64_t first_sample = 0;  // index of the first sequence; the others follow
  std::vector<std::int32_t> tokens, targets, positions, first_key;
  std::vector<std::int32_t> places = {};  // of a cut batch: each value's place in its sequence
};

// What rank `rank` of `ranks` holds of each sequence under context parallelism: of its 2 `ranks` equal parts the
// parts `rank` and 2 `ranks` - 1 - `rank`. `sequence` S is a multiple of 2 `ranks`. One rank holds all, uncut.
Batch cut_sequences(const Batch& batch, std::int64_t sequence, int rank, int ranks);

struct LoaderOptions {
  std::uint64_t first_sample = 0;  // global index at which the first batch's step starts
  std::int64_t global_batch = 1;   // sequences of a step over all ranks; a multiple of micro_batch * data_ranks
  std::int64_t micro_batch = 1;    // B
  std::int64_t data_rank = 0, data_ranks = 1;
  std::size_t ahead = 4;  // batches prepared ahead
};

// Prepares this rank's batches ahead in a thread: for step t, microbatch m and rank r the samples
//   first_sample + t*G + (m*R + r)*B + [0, B),   G = global_batch, R = data_ranks, B = micro_batch,
// so that a step sees the same sequences whatever the layout.
class BatchLoader {
 public:
  // `dataset` must live longer. Throws Error{usage} if the sizes don't divide.
  BatchLoader(const Dataset& dataset, const LoaderOptions& options);
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  std::int64_t micro_batches() const;  // of a step: G / (R*B)
  // The next batch, microbatch after microbatch, step after step; valid until the next call. Throws what reading threw.
  const Batch& next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle
