#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "append_file.hpp"
#include "dropcycle/core/file.hpp"
#include "dropcycle/train/metrics.hpp"
#include "event_file.hpp"

namespace dropcycle {
namespace {

// The lines of the steps up to `last_step`, as they should stand in the file.
template <class Metrics>
std::string lines_up_to(std::int64_t last_step, const std::vector<Metrics>& all) {
  std::string content;
  for (const Metrics& metrics : all) {
    if (metrics.step <= last_step) content += to_json(metrics) + "\n";
  }
  return content;
}

std::string kept_steps(const std::filesystem::path& run, std::int64_t last_step) {
  if (last_step == 0 || !std::filesystem::exists(run / "metrics.jsonl")) return "";
  return lines_up_to(last_step, read_step_metrics(run));
}

std::string kept_evaluations(const std::filesystem::path& run, std::int64_t last_step) {
  return last_step == 0 ? "" : lines_up_to(last_step, read_eval_metrics(run));
}

// Lines on standard error; on a terminal the newest step replaces the one before.
class Terminal {
 public:
  bool in_place() const { return in_place_; }
  void show_in_place(std::string line) {
    winsize size{};
    const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    if (known && line.size() >= size.ws_col) line.resize(size.ws_col - 1U);
    // The cursor stays at the line's start: whatever is printed next replaces it.
    std::fprintf(stderr, "\x1b[2K%s\r", line.c_str());
    std::fflush(stderr);
  }
  void print(const std::string& line) {
    std::fprintf(stderr, "%s%s\n", in_place_ ? "\x1b[2K" : "", line.c_str());
    std::fflush(stderr);
  }

 private:
  bool in_place_ = ::isatty(STDERR_FILENO) == 1;
};

std::vector<Scalar> scalars_of(const StepMetrics& metrics) {
  std::vector<Scalar> scalars = {{"loss/train", metrics.loss},
                                 {"loss/balance", metrics.balance_loss},
                                 {"loss/router_z", metrics.z_loss},
                                 {"optimizer/gradient_norm", metrics.gradient_norm},
                                 {"optimizer/learning_rate", metrics.learning_rate},
                                 {"speed/tokens_per_second", metrics.tokens_per_second},
                                 {"speed/product_share", metrics.product_share},
                                 {"experts/worst_imbalance", worst_imbalance(metrics)}};
  for (std::size_t layer = 0; layer < metrics.expert_load.size(); ++layer) {
    for (std::size_t expert = 0; expert < metrics.expert_load[layer].size(); ++expert) {
      scalars.push_back(
          {fmt::format("expert_load_layer_{}/expert_{}", layer, expert), metrics.expert_load[layer][expert]});
    }
  }
  return scalars;
}

}  // namespace

struct MetricsWriter::State {
  State(const std::filesystem::path& run, std::int64_t resumed_step, std::int64_t all_steps, std::int64_t interval)
      : steps_file(run / "metrics.jsonl", kept_steps(run, resumed_step)),
        evaluations_file(run / "eval.jsonl", kept_evaluations(run, resumed_step)),
        events(run / "tensorboard", resumed_step == 0 ? 0 : resumed_step + 1),
        steps(all_steps),
        log_interval(interval) {}

  AppendFile steps_file, evaluations_file;
  EventFile events;
  Terminal terminal;
  std::int64_t steps, log_interval;
};

MetricsWriter::MetricsWriter(const std::filesystem::path& run, std::int64_t resumed_step, std::int64_t steps,
                             std::int64_t log_interval) {
  std::filesystem::create_directories(run);
  state_ = std::make_unique<State>(run, resumed_step, steps, log_interval);
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::add(const StepMetrics& metrics) {
  state_->steps_file.append(to_json(metrics) + "\n");
  state_->events.add(metrics.step, scalars_of(metrics));
  const bool is_last = metrics.step == state_->steps;
  const std::string line = terminal_line(metrics, state_->steps);
  if (state_->terminal.in_place() && !is_last) {
    state_->terminal.show_in_place(line);
  } else if (is_last || metrics.step % state_->log_interval == 0) {
    state_->terminal.print(line);
  }
}

void MetricsWriter::add(const EvalMetrics& metrics) {
  state_->evaluations_file.append(to_json(metrics) + "\n");
  const std::vector<Scalar> scalars = {{"held_out/" + metrics.source, metrics.loss}};
  state_->events.add(metrics.step, scalars);
}

void MetricsWriter::sync() {
  state_->steps_file.sync();
  state_->evaluations_file.sync();
}

}  // namespace dropcycle
