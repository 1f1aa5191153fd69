// What a run reports of itself, on rank 0, into its folder and on the terminal:
//   metrics.jsonl   one JSON object per optimizer step, ascending, each step once
//   eval.jsonl      one JSON object per evaluation and held-out source
//   tensorboard/    event files for TensorBoard
//   config.toml     the resolved configuration (to_toml), written by the trainer
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace dropcycle {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();  // null in JSON, left out elsewhere

struct StepMetrics {
  std::int64_t step = 0;            // optimizer steps done, this one included: 1, 2, ...
  std::int64_t tokens = 0;          // tokens trained on since the run's first step
  double loss = kUnknown;           // language-model loss, nats per token, before the update
  double balance_loss = kUnknown;   // load-balancing loss before its coefficient; unknown in a dense model
  double z_loss = kUnknown;         // router z-loss before its coefficient; unknown if not computed
  double gradient_norm = kUnknown;  // global, before clipping
  double learning_rate = kUnknown;
  double step_seconds = kUnknown;
  double tokens_per_second = kUnknown;  // over all ranks
  double product_share = kUnknown;      // model FLOP/s over the machine's measured product FLOP/s, in [0, 1]
  double seconds_left = kUnknown;
  std::vector<std::vector<double>> expert_load = {};    // [L][E]: share of the layer's T·K assignments, rows sum to 1
  std::map<std::string, std::int64_t> bytes_sent = {};  // by rank 0 in each group that sent anything (traffic.hpp)

  bool operator==(const StepMetrics&) const = default;
};

struct EvalMetrics {
  std::int64_t step = 0;    // 0: before the first step
  std::string source = {};  // name of the held-out source
  double loss = kUnknown;   // nats per token
  std::int64_t tokens = 0;  // tokens that the loss is the mean of

  double perplexity() const;  // exp(loss)
  bool operator==(const EvalMetrics&) const = default;
};

// Load of the fullest expert over the mean load, of the layer where it is highest; 1 is balanced, E is all on one.
// Unknown without experts.
double worst_imbalance(const StepMetrics& metrics);

// One line without a line break, expert loads to five decimals; parsing throws Error{input} naming `where`.
std::string to_json(const StepMetrics& metrics);
std::string to_json(const EvalMetrics& metrics);
StepMetrics parse_step_metrics(const std::string& line, const std::string& where);
EvalMetrics parse_eval_metrics(const std::string& line, const std::string& where);

// The files of a run. Of several lines of one (step, source), the last counts. A last line that was cut off is left
// out. read_step_metrics throws Error{input} if the file isn't there; a run without eval.jsonl has no evaluations.
std::vector<StepMetrics> read_step_metrics(const std::filesystem::path& run);
std::vector<EvalMetrics> read_eval_metrics(const std::filesystem::path& run);

// "step 12/400  left 2m05s  loss 5.1234  12.3k tokens/s  41% of product speed  experts 1.31  norm 0.91  lr 3.00e-04
// balance 1.052": what is unknown is left out. Experts: worst_imbalance.
std::string terminal_line(const StepMetrics& metrics, std::int64_t steps);

// Writes all of the above. Only rank 0 makes one.
class MetricsWriter {
 public:
  // Creates `run` if needed. Lines of steps after `resumed_step` (0 for a fresh run) are dropped from the files, so
  // that each step stands there once. The terminal shows every step in place if standard error is a terminal, else a
  // line every `log_interval` steps and at the last.
  // A file that can't be written later on doesn't stop training: one warning, and the lines are kept for a next try.
  MetricsWriter(const std::filesystem::path& run, std::int64_t resumed_step, std::int64_t steps,
                std::int64_t log_interval);
  ~MetricsWriter();
  void add(const StepMetrics& metrics);
  void add(const EvalMetrics& metrics);
  // Forces all lines to disk; before a checkpoint is committed, so that its steps' lines outlive a power cut.
  void sync();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dropcycle
