// Initial weights of a model: fresh ones, and an MoE's from a trained dense model (naive, drop and noise upcycling).
//
// Drop-Upcycling (arXiv 2502.19261, section 3.2). For every MoE layer and expert
//   S ⊆ {0, ..., F-1}, |S| = floor(r F)            the same S for gate, up and down
//   μ, σ = mean and standard deviation of the dense matrix over the neurons of S, per matrix
//   W~ = I_S ⊙ R + (1 - I_S) ⊙ W,   R ~ N(μ, σ²)   (Eq. 4)
// A neuron is a row of gate and up [F,H] and a column of down [H,F]. σ is the population's (divided by n, as Eq. 4
// describes the dropped block by its own statistics; the authors' script divides by n - 1, which differs by 1/(2n)
// relatively and has no value at n = 1). Everything but the FFN is copied; the router is fresh.
//
// Every number is a pure function of (options, dense weights, name, global element index): no layout, rank count or
// number of threads changes a bit. Values are computed in double and rounded once to the master's type (f32, or f64);
// a bf16 weight is the rounded f32 one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/core/sharded.hpp"
#include "dropcycle/layers/parameter.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

// floor(ratio * neurons), exactly, for the decimal fraction that `ratio` was written as: 0.29 of 100 is 29. Throws
// Error{usage} unless 0 <= ratio <= 1.
std::int64_t dropped_neurons(double ratio, std::int64_t neurons);

// The three matrices of an FFN.
enum class FfnMatrix { gate, up, down };
std::string_view name(FfnMatrix matrix);

// S of one expert's matrix, ascending. With init.index_sets == "shared" it is the same for the three matrices.
std::vector<std::int64_t> index_set(const InitConfig& init, std::int64_t neurons, std::int64_t layer,
                                    std::int64_t expert, FfnMatrix matrix);

// Fills out.local with fresh values: normal(0, init_std), ones, or the router's distribution (the paper's Table 8):
//   normal_002 N(0, 0.02), normal_02887 N(0, 0.2887), uniform_002 U(-0.02√3, 0.02√3), uniform_05 U(-0.5, 0.5),
//   uniform_01 U(0, 1).
void initialise_fresh(const ParameterSpec& spec, const InitConfig& init, double init_std, const ShardedTensor& out);
// The same bits where `out` lives on the device of `ops`, which draws them there.
void initialise_fresh(const ParameterSpec& spec, const InitConfig& init, double init_std, const ShardedTensor& out,
                      Ops& ops);

// Fills out.local with a part of a dense model's weight, in out's type.
using ReadWeight = std::function<void(const ShardedTensor& out)>;

// What was done to one matrix of one expert.
struct DroppedBlock {
  std::int64_t layer = 0, expert = 0;
  FfnMatrix matrix = FfnMatrix::gate;
  std::int64_t neurons = 0;                 // |S|
  std::string index_digest;                 // digest of S as little-endian int64 values
  double mean = 0, standard_deviation = 0;  // of the dense weights that were dropped; 0 if none
};

// Throws Error{input} naming the first size that differs, with both values.
void check_fits(const ModelConfig& dense, const ModelConfig& moe);

// Makes an MoE's weights part by part. Holds at most one dense FFN matrix at a time.
class Upcycler {
 public:
  // init.method is naive, drop or noise. Throws as check_fits and dropped_neurons.
  Upcycler(const ModelConfig& moe, const ModelConfig& dense, const InitConfig& init, ReadWeight read_dense);
  ~Upcycler();
  Upcycler(const Upcycler&) = delete;
  Upcycler& operator=(const Upcycler&) = delete;

  // Fills out.local, any part of the MoE's parameter `spec`. Reads a dense FFN matrix once for all experts if the calls
  // come in order().
  void fill(const ParameterSpec& spec, const ShardedTensor& out);
  // Places in `specs` in the order that reads every dense matrix once.
  static std::vector<std::size_t> order(std::span<const ParameterSpec> specs);
  // One for each expert matrix that was filled, in the order of the calls.
  const std::vector<DroppedBlock>& blocks() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The local part of every parameter (local[i] belongs to specs[i]) by init.method: scratch, naive, drop or noise.
// `dense` and `read_dense` are for the last three. `progress(bytes done, bytes in all)` after each parameter.
std::vector<DroppedBlock> initialise(const ModelConfig& model, const InitConfig& init,
                                     std::span<const ParameterSpec> specs, std::span<const ShardedTensor> local,
                                     const ModelConfig& dense = {}, const ReadWeight& read_dense = {},
                                     const std::function<void(std::int64_t, std::int64_t)>& progress = {});

}  // namespace dropcycle
