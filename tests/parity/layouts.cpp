// Trains tiny models through the real training step under any layouts and compares what they end with.
//
//   mpirun -n N layouts BASE.toml JOBS.jsonl
//
// All ranks run the jobs, one a line, in turn: dozens of layouts cost one start of MPI. A job is
//
//   {"name": "tp2", "set": ["parallel.tensor=2"], "from": "", "steps": 5, "output": "out/tp2", "more": 0,
//    "references": ["out/one"]}
//
// It starts from the checkpoint `from`, or from config.init where that is empty; takes `steps` steps; writes the
// weights, Adam's moments and the last step's summed gradients as a layout-free checkpoint below `output`; takes `more`
// steps; and compares the checkpoint, tensor by tensor, with those below `references`. Rank 0 prints one JSON line a
// job. A layout that is refused gives {"name": ..., "refused": why}.
//
//   layouts shard FILE VOCABULARY TOKENS
//
// writes a shard of random tokens with a structure that a model can learn.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>

#include "dropcycle/data/shard.hpp"
#include "dropcycle/train/machine.hpp"
#include "dropcycle/train/training_step.hpp"
#include "run_memory.hpp"
#include "run_state.hpp"

using namespace dropcycle;
using nlohmann::json;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Job {
  std::string name;
  std::vector<std::string> set;
  std::string from, output;
  std::vector<std::string> references;
  std::int64_t steps = 0, more = 0;
};

Job parse_job(const std::string& line) {
  const json j = json::parse(line);
  return {j.at("name"), j.at("set"), j.at("from"), j.at("output"), j.at("references"), j.at("steps"), j.at("more")};
}

// What a job measures, step by step.
struct Course {
  std::vector<double> losses, balance_losses, gradient_norms, seconds;
};

class Session {
 public:
  Session(const Config& config, const Runtime& runtime)
      : config_(config),
        machine_(make_machine(config_, runtime)),
        model_(config_.model, machine_.groups, *machine_.ops, machine_.compute, machine_.pipeline,
               {.optimizer = config_.parallel.shard_optimizer, .bucket_bytes = config_.parallel.bucket_bytes}),
        optimizer_(model_, machine_.groups, config_.optimizer),
        training_(model_, optimizer_, machine_.groups, config_),
        dataset_(config_.data, config_.model.vocab_size) {}

  void start(const std::string& from) {
    if (from.empty()) {
      initialise(model_, config_);
      return;
    }
    Config source = config_;
    source.train.output = from;
    const RunPosition position = resume_run(source, model_, optimizer_, machine_.groups);
    require(!position.from.empty(), "{}: no checkpoint", from);
    step_ = position.step;
  }

  void train(std::int64_t steps, Course& course) {
    const Communicator &data = machine_.groups[GroupKind::dp], &context = machine_.groups[GroupKind::cp];
    const std::int64_t batch = config_.train.global_batch;
    BatchLoader loader(dataset_, {.first_sample = static_cast<std::uint64_t>(step_ * batch),
                                  .global_batch = batch,
                                  .micro_batch = config_.train.micro_batch,
                                  .data_rank = data.rank(),
                                  .data_ranks = data.size()});
    for (const std::int64_t last = step_ + steps; step_ < last;) {
      std::vector<Batch> batches;
      for (std::int64_t m = 0; m < loader.micro_batches(); ++m) {
        batches.push_back(cut_sequences(loader.next(), config_.data.sequence_length, context.rank(), context.size()));
      }
      machine_.groups.world().barrier();
      const auto start = Clock::now();
      const StepResult result =
          training_.run(++step_, batches, [&](std::uint64_t sample) { return dataset_.describe(sample); });
      machine_.groups.world().barrier();
      course.seconds.push_back(seconds_since(start));
      course.losses.push_back(result.loss);
      course.balance_losses.push_back(result.balance);
      course.gradient_norms.push_back(result.gradient_norm);
    }
  }

  void save(const std::string& output) {
    const auto gradients = PerGroup<OwnedTensor>::of([this](GradientGroup group) { return kept_gradients(group); });
    auto state = state_tensors(model_, optimizer_, machine_.groups);
    const auto views = PerGroup<Tensor>::of([&](GradientGroup group) { return gradients[group].view(); });
    const auto writes =
        PerGroup<bool>::of([this](GradientGroup group) { return machine_.groups[replicas_of(group)].rank() == 0; });
    state.push_back({"gradient", model_.parameters().sharded(views, writes)});
    std::vector<HostMirror> mirrors = mirror_on_host(state, machine_.ops->device());
    for (HostMirror& mirror : mirrors) mirror.download();
    const DataState data = dataset_.state(static_cast<std::uint64_t>(step_ * config_.train.global_batch));
    save_checkpoint(output, checkpoint_info(config_, step_, data, text_facts(config_)), state,
                    rank_group(machine_.groups));
  }

  // Bytes of the fullest rank: all, state, activations.
  json memory() {
    const RunMemory memory = run_memory(config_, machine_, model_, optimizer_, false);
    const auto row = [](const HeldBytes& held) { return json{held.all, held.state, held.activations}; };
    return {{"counted", row(memory.counted)},
            {"even", row(memory.even)},
            {"routed", row(memory.routed)},
            {"worst", row(memory.worst)}};
  }

  std::int64_t step() const { return step_; }
  const Groups& groups() const { return machine_.groups; }
  const Model& model() const { return model_; }

 private:
  // Of what this rank keeps, laid out as its masters and moments.
  OwnedTensor kept_gradients(GradientGroup group) const {
    const ParameterStore& store = model_.parameters();
    OwnedTensor kept(accumulator_of(store.compute()), {store.kept_elements(group)}, machine_.ops->device());
    for (const KeptRange& range : store.kept(group)) {
      const std::int64_t count = range.last - range.first;
      model_.ops().convert(store.gradients(group).rows(range.first, count), kept.view().rows(range.at, count));
    }
    return kept;
  }

  Config config_;
  Machine machine_;
  Model model_;
  AdamW optimizer_;
  TrainingStep training_;
  Dataset dataset_;
  std::int64_t step_ = 0;
};

std::vector<double> values_of(Checkpoint& checkpoint, const ParameterEntry& entry) {
  std::vector<double> values(static_cast<std::size_t>(entry.shape.elements()));
  checkpoint.read(entry.kind, whole(entry.name, Tensor(values.data(), entry.shape)));
  return values;
}

// |found - expected| / |expected|, 2-norms; 0 where both are zero.
double relative_difference(const std::vector<double>& found, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  if (difference == 0) return 0;
  return norm > 0 ? std::sqrt(difference / norm) : std::numeric_limits<double>::infinity();
}

// Of every kind: the tensor that differs most, by how much, and whether all bits of all tensors are equal.
json compare(const std::string& found_folder, const std::string& expected_folder) {
  Checkpoint found = Checkpoint::open(find_checkpoint(found_folder));
  Checkpoint expected = Checkpoint::open(find_checkpoint(expected_folder));
  json result = json::object();
  for (const ParameterEntry& entry : expected.parameters()) {
    json& kind = result[entry.kind];
    if (kind.is_null()) kind = {{"worst", 0.0}, {"tensor", ""}, {"bitwise", true}, {"tensors", 0}};
    const std::vector<double> one = values_of(expected, entry), other = values_of(found, entry);
    const double difference = relative_difference(other, one);
    kind["tensors"] = kind["tensors"].get<int>() + 1;
    if (!(difference <= kind["worst"].get<double>())) {
      kind["worst"] = std::isfinite(difference) ? difference : 1e300;
      kind["tensor"] = entry.name;
    }
    if (std::memcmp(one.data(), other.data(), one.size() * sizeof(double)) != 0) kind["bitwise"] = false;
  }
  require(found.parameters().size() == expected.parameters().size(), "{} holds {} tensors, {} holds {}", found_folder,
          found.parameters().size(), expected_folder, expected.parameters().size());
  return result;
}

json run(const Job& job, const std::string& base, const Runtime& runtime) {
  const auto start = Clock::now();
  json report = {{"name", job.name}, {"ranks", runtime.size()}};
  std::unique_ptr<Session> session;
  try {
    Config config = load_config(base, job.set);
    resolve(config);
    session = std::make_unique<Session>(config, runtime);
  } catch (const Error& error) {
    if (error.status() != Status::usage) throw;
    report["refused"] = error.what();
    return report;
  }
  session->start(job.from);
  session->groups().world().barrier();
  const double started = seconds_since(start);
  Course course;
  session->train(job.steps, course);
  if (!job.output.empty()) session->save(job.output);
  session->train(job.more, course);
  report["layout"] = session->groups().topology().describe();
  report["losses"] = course.losses;
  report["balance_losses"] = course.balance_losses;
  report["gradient_norms"] = course.gradient_norms;
  report["seconds"] = course.seconds;
  report["start_seconds"] = started;
  report["memory"] = session->memory();
  report["most_alive"] = session->model().most_alive();
  report["compared"] = json::array();
  for (const std::string& reference : job.references) {
    if (runtime.rank() == 0) report["compared"].push_back(compare(job.output, reference));
  }
  session->groups().world().barrier();
  report["all_seconds"] = seconds_since(start);
  return report;
}

int run_jobs(const std::string& base, const std::string& jobs, const Runtime& runtime) {
  std::ifstream lines(jobs);
  for (std::string line; std::getline(lines, line);) {
    const json report = run(parse_job(line), base, runtime);
    if (runtime.rank() == 0) std::cout << report.dump() << std::endl;
  }
  return 0;
}

// Documents of 5 to 60 tokens in which a token often follows from the one before.
int write_shard(const std::string& file, std::int64_t vocabulary, std::int64_t tokens) {
  ShardWriter writer(file, "", static_cast<std::uint64_t>(vocabulary), "synthetic");
  const RandomStream stream(1, Purpose::test, "synthetic");
  std::uint64_t draw = 0;
  for (std::int64_t written = 0; written < tokens;) {
    std::vector<std::int32_t> document;
    const std::uint32_t length = 5 + stream.bits(draw++) % 56;
    for (std::uint32_t i = 0; i < length; ++i) {
      const std::uint32_t bits = stream.bits(draw++);
      const bool follows = i > 0 && bits % 4 != 0;
      const std::int64_t token = follows ? (3 * document.back() + 1) : static_cast<std::int64_t>(bits / 4);
      document.push_back(static_cast<std::int32_t>(token % vocabulary));
    }
    writer.add_document(document);
    written += length;
  }
  writer.commit();
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  if (words.size() == 4 && words[0] == "shard")
    return write_shard(words[1], std::stoll(words[2]), std::stoll(words[3]));
  const Runtime runtime(&count, &arguments);
  try {
    require(words.size() == 2, "usage: layouts BASE.toml JOBS.jsonl");
    return run_jobs(words[0], words[1], runtime);
  } catch (const Error& error) {
    runtime.abort(error.status(), error.what());
  } catch (const std::exception& error) {
    runtime.abort(Status::internal, error.what());
  }
}
