#include "dropcycle/train/trainer.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>

#include "dropcycle/core/file.hpp"
#include "dropcycle/core/log.hpp"
#include "dropcycle/core/profile.hpp"
#include "dropcycle/model/cost.hpp"
#include "dropcycle/train/machine.hpp"
#include "dropcycle/train/metrics.hpp"
#include "dropcycle/train/stop_signal.hpp"
#include "dropcycle/train/traffic_report.hpp"
#include "dropcycle/train/training_step.hpp"
#include "dropcycle/train/validation.hpp"
#include "run_memory.hpp"
#include "run_state.hpp"

namespace dropcycle {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Throws Error{usage} if the run folder holds anything and the run isn't to be resumed.
void check_output(const Config& config, Resume resume) {
  if (config.train.output.empty()) {
    fail(Status::usage, "train.output is empty: give the run a folder, e.g. --set train.output=run/my_run");
  }
  if (resume == Resume::automatic) return;
  std::error_code code;
  if (std::filesystem::exists(config.train.output) && !std::filesystem::is_empty(config.train.output, code)) {
    fail(Status::usage,
         "{}: the run folder isn't empty: add --resume auto to go on from its newest checkpoint, or "
         "choose another train.output",
         config.train.output);
  }
}

class Run {
 public:
  Run(const Config& config, const Runtime& runtime, Resume resume, bool profile);
  Status run();

 private:
  void report_start(Resume resume) const;
  std::vector<Batch> load_step();
  StepResult train_step(std::int64_t step, const std::function<std::string(std::uint64_t)>& describe);
  void evaluate(std::int64_t step);
  void save(std::int64_t step);
  void report(const SaveResult& save) const;
  void report_memory();
  StepMetrics metrics(std::int64_t step, const StepResult& result, double seconds);
  void report_traffic(std::int64_t steps) const;
  void report_profile() const;
  bool is_root() const { return machine_.groups.world().rank() == 0; }

  std::unique_ptr<Profile> profile_;  // first: what is made after it is profiled
  const Config& config_;
  Machine machine_;
  TextFacts text_;
  Model model_;
  AdamW optimizer_;
  RunPosition position_;
  Dataset dataset_;
  Validation validation_;
  TrainingStep step_;
  double product_speed_;  // before the loader's thread takes a core
  BatchLoader loader_;
  CheckpointWriter checkpoints_;
  std::unique_ptr<MetricsWriter> metrics_;
  double seconds_per_step_ = 0;  // smoothed
  GroupTraffic traffic_;         // of all steps of this process
};

RunPosition start_position(const Config& config, Model& model, const AdamW& optimizer, const Groups& groups,
                           Resume resume) {
  if (resume == Resume::automatic) {
    RunPosition position = resume_run(config, model, optimizer, groups);
    if (!position.from.empty()) return position;
  }
  RunPosition position;
  position.huggingface = initialise(model, config);
  return position;
}

Machine checked_machine(const Config& config, const Runtime& runtime, Resume resume) {
  Machine machine = make_machine(config, runtime);
  check_batch(config, machine.groups.topology());
  check_same_everywhere(machine.groups.world(), "configuration", to_toml(config));
  check_output(config, resume);
  machine.groups.world().barrier();  // no rank writes into the folder before all have looked at it
  return machine;
}

Run::Run(const Config& config, const Runtime& runtime, Resume resume, bool profile)
    : profile_(profile ? std::make_unique<Profile>() : nullptr),
      config_(config),
      machine_(checked_machine(config, runtime, resume)),
      text_(text_facts(config)),
      model_(config.model, machine_.groups, *machine_.ops, machine_.compute, machine_.pipeline,
             {.optimizer = config.parallel.shard_optimizer, .bucket_bytes = config.parallel.bucket_bytes}),
      optimizer_(model_, machine_.groups, config.optimizer),
      position_(start_position(config, model_, optimizer_, machine_.groups, resume)),
      dataset_(config.data, config.model.vocab_size, text_.tokenizer_digest,
               position_.data ? &*position_.data : nullptr),
      validation_(config, machine_.groups, text_.tokenizer_digest),
      step_(model_, optimizer_, machine_.groups, config),
      product_speed_(measure_product_speed(machine_)),
      loader_(dataset_, {.first_sample = dataset_.first_sample(),
                         .global_batch = config.train.global_batch,
                         .micro_batch = config.train.micro_batch,
                         .data_rank = machine_.groups[GroupKind::dp].rank(),
                         .data_ranks = machine_.groups[GroupKind::dp].size()}),
      checkpoints_(config.train.output, config.checkpoint, rank_group(machine_.groups)) {
  if (position_.huggingface != "{}") text_.huggingface = position_.huggingface;
  if (is_root()) {
    std::filesystem::create_directories(config.train.output);
    write_file(std::filesystem::path(config.train.output) / "config.toml", to_toml(config));
    metrics_ = std::make_unique<MetricsWriter>(config.train.output, position_.step, config.train.steps,
                                               config.train.log_interval);
    report_start(resume);
  }
}

void Run::report_start(Resume resume) const {
  const ParameterCount count = count_parameters(config_.model);
  log_info("{:.1f} M parameters ({:.1f} M active), {} on {} threads, {}, backend {}",
           static_cast<double>(count.total) / 1e6, static_cast<double>(count.active) / 1e6, name(machine_.compute),
           machine_.threads, machine_.groups.topology().describe(), machine_.ops->name());
  if (!position_.from.empty()) {
    log_info("resuming after step {} from {}", position_.step, position_.from);
  } else if (resume == Resume::automatic) {
    log_info("{}: no checkpoint there: starting afresh", config_.train.output);
  }
}

std::vector<Batch> Run::load_step() {
  const Span span(SpanKind::phase, "data");
  std::vector<Batch> batches;
  const Communicator& context_ranks = machine_.groups[GroupKind::cp];
  for (std::int64_t m = 0; m < loader_.micro_batches(); ++m) {
    batches.push_back(
        cut_sequences(loader_.next(), config_.data.sequence_length, context_ranks.rank(), context_ranks.size()));
  }
  return batches;
}

StepResult Run::train_step(std::int64_t step, const std::function<std::string(std::uint64_t)>& describe) {
  const Span span(SpanKind::step, "step");
  return step_.run(step, load_step(), describe);
}

void Run::evaluate(std::int64_t step) {
  const Span span(SpanKind::phase, "evaluation");
  for (std::size_t source = 0; source < validation_.sources(); ++source) {
    const EvalMetrics result = validation_.run(model_, source, step);
    if (!is_root()) continue;
    metrics_->add(result);
    log_info("step {}  held-out {}: loss {:.4f}  perplexity {:.2f}  ({} tokens)", step, result.source, result.loss,
             result.perplexity(), result.tokens);
  }
}

void Run::report(const SaveResult& save) const {
  if (!is_root() || save.state == SaveResult::State::idle || save.state == SaveResult::State::writing) return;
  if (save.state == SaveResult::State::failed) {
    log_error("checkpoint not saved, training goes on: {}", save.error);
    return;
  }
  log_info("saved {} ({:.1f} MB at {:.2f} GB/s, training stalled {:.0f} ms)", save.folder.string(),
           static_cast<double>(save.size_bytes) / 1e6, static_cast<double>(save.size_bytes) / 1e9 / save.write_seconds,
           1e3 * save.stall_seconds);
}

void Run::report_memory() {
  const RunMemory memory = run_memory(config_, machine_, model_, optimizer_, !validation_.empty());
  if (!is_root()) return;
  const auto planned = [&](const HeldBytes& held) {
    return fmt::format("{:.1f} MB ({:+.2f} %)", held.all / 1e6, 100 * (held.all / memory.counted.all - 1));
  };
  const bool uneven = memory.worst.all > memory.even.all;
  log_info(
      "memory of the fullest rank: {:.1f} MB, {:.1f} of them parameters and optimizer; planned {}{}",
      memory.counted.all / 1e6, memory.counted.state / 1e6, planned(memory.routed),
      uneven ? fmt::format(" for the rows that its experts got, {} for an even router", planned(memory.even)) : "");
}

void Run::save(std::int64_t step) {
  if (metrics_) metrics_->sync();
  const std::uint64_t samples =
      dataset_.first_sample() + static_cast<std::uint64_t>((step - position_.step) * config_.train.global_batch);
  auto state = state_tensors(model_, optimizer_, machine_.groups);
  std::vector<HostMirror> mirrors = mirror_on_host(state, machine_.ops->device());
  for (HostMirror& mirror : mirrors) mirror.download();
  SaveResult previous;
  checkpoints_.start(checkpoint_info(config_, step, dataset_.state(samples), text_), state, &previous);
  report(previous);
}

StepMetrics Run::metrics(std::int64_t step, const StepResult& result, double seconds) {
  const bool warm = step > position_.step + 2;  // the first steps create kernels and touch memory
  seconds_per_step_ = warm ? 0.9 * seconds_per_step_ + 0.1 * seconds : seconds;
  const bool moe = config_.model.is_moe();
  const std::int64_t step_tokens = config_.train.global_batch * config_.data.sequence_length;
  const double rate = static_cast<double>(step_tokens) / seconds;
  std::map<std::string, std::int64_t> bytes_sent;
  for (const GroupKind group : kGroupKinds) {
    traffic_[group] += result.traffic[group];
    const std::int64_t bytes = std::llround(result.traffic[group].total());
    if (bytes > 0) bytes_sent[std::string(name(group))] = bytes;
  }
  return {.step = step,
          .tokens = step * step_tokens,
          .loss = result.loss,
          .balance_loss = moe ? result.balance : kUnknown,
          .z_loss = moe && config_.train.z_coefficient > 0 ? result.z : kUnknown,
          .gradient_norm = result.gradient_norm,
          .learning_rate = result.learning_rate,
          .step_seconds = seconds,
          .tokens_per_second = rate,
          .product_share =
              product_speed_ > 0
                  ? rate * training_flops_per_token(config_.model, config_.data.sequence_length) / product_speed_
                  : kUnknown,
          .seconds_left = seconds_per_step_ * static_cast<double>(config_.train.steps - step),
          .expert_load = result.expert_load,
          .bytes_sent = std::move(bytes_sent)};
}

void Run::report_traffic(std::int64_t steps) const {
  if (!is_root() || steps == 0) return;
  const TrainConfig& t = config_.train;
  const StepSizes sizes{.micro_batch = t.micro_batch,
                        .sequence = config_.data.sequence_length,
                        .microbatches = loader_.micro_batches(),
                        .compute = machine_.compute,
                        .recompute = parse_recompute(t.recompute)};
  const GroupTraffic formula =
      step_traffic(config_.model, machine_.groups, machine_.pipeline, model_.parameters().shards(), sizes);
  const auto lines = traffic_table(machine_.groups, traffic_, steps, formula);
  if (lines.empty()) return;
  log_info("rank 0 sent in each step (with balanced experts in the formula):");
  for (const std::string& line : lines) log_info("{}", line);
}

void Run::report_profile() const {
  if (!profile_) return;
  const std::vector<std::string> events =
      machine_.groups.world().all_gather_text(profile_->trace_events(machine_.groups.world().rank()));
  if (!is_root()) return;
  const auto path = std::filesystem::path(config_.train.output) / "trace.json";
  write_file(path, trace_json(events));
  log_info("where rank 0's time went (all ranks, span by span: {}, for ui.perfetto.dev):\n{}", path.string(),
           profile_->table());
}

Status Run::run() {
  const StopSignal stop;
  if (profile_) {
    machine_.groups.world().barrier();
    profile_->set_zero();
  }
  const auto describe = [this](std::uint64_t sample) { return dataset_.describe(sample); };
  if (position_.step == 0) evaluate(0);
  std::int64_t saved = position_.step;
  for (std::int64_t step = position_.step + 1; step <= config_.train.steps; ++step) {
    const auto start = Clock::now();
    const StepResult result = train_step(step, describe);
    if (metrics_) metrics_->add(metrics(step, result, seconds_since(start)));
    report(checkpoints_.poll());
    const bool last = step == config_.train.steps, stopping = !last && stop.requested(machine_.groups.world());
    const auto due = [&](std::int64_t interval) { return interval > 0 && step % interval == 0; };
    if (last || stopping || due(config_.checkpoint.interval)) {
      save(step);
      saved = step;
    }
    if (last || due(config_.train.eval_interval)) evaluate(step);  // while the checkpoint is being written
    if (!stopping) continue;
    report_profile();
    report(checkpoints_.finish());
    if (is_root())
      log_info("stopped after step {} on request: run the same command with --resume auto to go on", saved);
    return Status::requeue;
  }
  report_traffic(config_.train.steps - position_.step);
  report_memory();
  report_profile();
  const SaveResult final_save = checkpoints_.finish();
  report(final_save);
  if (final_save.state == SaveResult::State::failed) {
    fail(Status::storage, "the last checkpoint (step {}) could not be saved: {}", saved, final_save.error);
  }
  return Status::ok;
}

}  // namespace

Status train(const Config& config, const Runtime& runtime, Resume resume, bool profile) {
  if (config.train.steps <= 0) fail(Status::usage, "train.steps = {}: must be at least 1", config.train.steps);
  Run run(config, runtime, resume, profile);
  return run.run();
}

}  // namespace dropcycle
