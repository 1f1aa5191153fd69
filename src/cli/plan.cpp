// dropcycle plan: memory of every pipeline stage and bytes sent, before anything is started.
#include "dropcycle/model/plan.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <span>

#include "dropcycle/core/error.hpp"
#include "dropcycle/model/step_time.hpp"
#include "verbs.hpp"

namespace dropcycle {
namespace {

struct PlanVerb {
  std::string file, memory, device = "cpu";
  std::vector<std::string> overrides;
  int ranks = 1;
  bool search = false;
};

// "94GB", "80GiB", "512MB", "94e9" in bytes.
double parse_memory(const std::string& text) {
  static const std::pair<const char*, double> kUnits[] = {
      {"GiB", 1024.0 * 1024 * 1024}, {"MiB", 1024.0 * 1024}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"", 1}};
  std::size_t end = 0;
  double value = -1;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  for (const auto& [unit, bytes] : kUnits) {
    if (end > 0 && value > 0 && text.substr(end) == unit) return value * bytes;
  }
  fail(Status::usage, "--memory-per-rank {}: expected a size, e.g. 94GB, 80GiB or 512MB", text);
}

std::string gigabytes(double bytes) {
  if (bytes >= 1e10) return fmt::format("{:.1f} GB", bytes / 1e9);
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  return fmt::format("{:.2f} MB", bytes / 1e6);
}

std::string describe(const Plan& plan, const Config& config) {
  const Layout& l = plan.layout;
  std::string text = fmt::format("tp {} cp {} dp {} pp {}", l.tp, l.cp, l.dp, l.pp);
  if (config.parallel.virtual_stages > 1) text += fmt::format(" x {}", config.parallel.virtual_stages);
  if (config.model.is_moe()) text += fmt::format(", etp {} ep {} edp {}", l.etp, l.ep, plan.edp);
  return text;
}

ExpertLoad worst_of(const Plan& plan) { return {plan.worst_expert_load, plan.worst_expert_load}; }

void print_stages(const Plan& plan) {
  fmt::print("{:>5} {:>6} {:>10} | {:>10} {:>10} {:>10} {:>10} {:>10} | {:>10} {:>5} {:>10} | {:>10}\n", "stage",
             "layers", "parameters", "weights", "gradients", "masters", "moments", "packed", "saved", "alive",
             "scratch", "total");
  for (const StagePlan& s : plan.stages) {
    fmt::print("{:>5} {:>6} {:>8.1f} M | {:>10} {:>10} {:>10} {:>10} {:>10} | {:>10} x {:>3} {:>10} | {:>10}\n",
               s.stage, s.layers, s.parameters / 1e6, gigabytes(s.weights), gigabytes(s.gradients),
               gigabytes(s.masters), gigabytes(s.moments), gigabytes(s.packed), gigabytes(s.saved), s.alive,
               gigabytes(s.scratch), gigabytes(s.total()));
  }
}

void print_traffic(const Plan& plan) {
  fmt::print("\nsent in a step by a rank of the stage that sends most\n");
  double total = 0;
  for (const GroupKind group : kGroupKinds) {
    for (const Collective kind : kCollectives) {
      const double bytes = plan.traffic[group][kind];
      if (bytes > 0) fmt::print("  {:<16} {:<15} {:>10}\n", name(group), name(kind), gigabytes(bytes));
      total += bytes;
    }
  }
  fmt::print("  {:<32} {:>10}\n", "in all", gigabytes(total));
}

// "moments 33.1 GB, saved activations 12.0 GB, gradients 5.0 GB".
std::string largest(const StagePlan& s) {
  std::vector<std::pair<double, const char*>> parts = {
      {s.weights, "weights"},       {s.gradients, "gradients"},
      {s.masters, "masters"},       {s.moments, "moments"},
      {s.packed, "packed weights"}, {static_cast<double>(s.alive) * s.saved, "saved activations"},
      {s.scratch, "scratch"}};
  std::ranges::sort(parts, std::greater<>());
  return fmt::format("{} {}, {} {}, {} {}", parts[0].second, gigabytes(parts[0].first), parts[1].second,
                     gigabytes(parts[1].first), parts[2].second, gigabytes(parts[2].first));
}

struct Change {
  std::string text;
  Config config;
};

// Settings that take less memory, each a step away from `config`.
std::vector<Change> changes(const Config& config) {
  std::vector<Change> result;
  const auto add = [&](std::string text, auto&& change) {
    Change made{std::move(text), config};
    change(made.config);
    result.push_back(std::move(made));
  };
  const auto twice = [&](const char* key, int ParallelConfig::*member) {
    const int value = 2 * (config.parallel.*member);
    add(fmt::format("parallel.{}={}", key, value), [&](Config& c) { c.parallel.*member = value; });
  };
  if (!config.parallel.shard_optimizer) {
    add("parallel.shard_optimizer=true", [](Config& c) { c.parallel.shard_optimizer = true; });
  }
  for (const char* recompute : {"selective", "full"}) {
    if (config.train.recompute == "full" || config.train.recompute == recompute) continue;
    add(fmt::format("train.recompute={}", recompute), [&](Config& c) { c.train.recompute = recompute; });
  }
  if (config.train.micro_batch % 2 == 0) {
    add(fmt::format("train.micro_batch={}", config.train.micro_batch / 2), [](Config& c) { c.train.micro_batch /= 2; });
  }
  if (config.model.is_moe()) twice("expert", &ParallelConfig::expert);
  twice("tensor", &ParallelConfig::tensor);
  twice("pipeline", &ParallelConfig::pipeline);
  twice("context", &ParallelConfig::context);
  if (config.model.is_moe()) twice("expert_tensor", &ParallelConfig::expert_tensor);
  return result;
}

// The fewest changes that fit into `memory`; of several the one that takes least.
std::string nearest_that_fits(const Config& config, int ranks, const PlanOptions& options, double memory) {
  std::vector<Change> reached = {{"", config}};
  constexpr int kMostChanges = 4;
  for (int count = 1; count <= kMostChanges; ++count) {
    std::vector<Change> next;
    std::string best;
    double least = memory;
    for (const Change& from : reached) {
      for (Change& to : changes(from.config)) {
        to.config.parallel.data = 0;
        Config resolved = to.config;
        const auto plan = plan_if_valid(resolved, ranks, options);
        if (!plan) continue;
        to.text = from.text + " --set " + to.text;
        const double total = plan->fullest().total();
        if (total <= least) {
          least = total;
          best = fmt::format("{} takes {}", to.text.substr(1), gigabytes(total));
        }
        next.push_back(std::move(to));
      }
    }
    if (!best.empty()) return best;
    reached = std::move(next);
  }
  return "";
}

void print_verdict(const Config& config, int ranks, const PlanOptions& options, const Plan& plan, double memory) {
  const StagePlan& fullest = plan.fullest();
  if (fullest.total() <= memory) {
    fmt::print("\nfits into {}: {} are left on stage {}\n", gigabytes(memory), gigabytes(memory - fullest.total()),
               fullest.stage);
  } else {
    const std::string nearest = nearest_that_fits(config, ranks, options, memory);
    fmt::print("\ndoes not fit into {}: stage {} needs {} more; largest: {}\n", gigabytes(memory), fullest.stage,
               gigabytes(fullest.total() - memory), largest(fullest));
    fmt::print("{}\n", nearest.empty() ? "no change of four settings fits: take more ranks" : "nearest: " + nearest);
  }
}

// Tries every layout of powers of two on these ranks and shows those that fit and send least.
void print_search(const Config& config, int ranks, const PlanOptions& options, double memory) {
  struct Found {
    std::string text;
    double total, worst, sent;
  };
  std::vector<Found> found;
  int tried = 0;
  constexpr int kMostContext = 4;
  for (Config& layout : layouts_to_try(config, ranks, kMostContext)) {
    layout.parallel.expert_tensor = layout.parallel.virtual_stages = 1;
    layout.parallel.schedule = "1f1b";
    const auto plan = plan_if_valid(layout, ranks, options);
    if (!plan) continue;
    ++tried;
    PlanOptions worst = options;
    worst.expert_load = worst_of(*plan);
    const double total = plan->fullest().total();
    if (total > memory) continue;
    found.push_back({describe(*plan, layout), total, make_plan(layout, ranks, worst).fullest().total(),
                     sent_in_all(plan->traffic)});
  }
  std::ranges::sort(found, {}, [](const Found& f) { return f.sent; });
  constexpr std::size_t kShown = 16;
  fmt::print("\n{} of {} layouts fit into {} (virtual_stages 1, expert_tensor 1); those that send least in a step\n",
             found.size(), tried, gigabytes(memory));
  found.resize(std::min(found.size(), kShown));
  fmt::print("  {:<44} {:>10} {:>16} {:>10}\n", "layout", "needs", "at worst routing", "sends");
  for (const Found& f : found) {
    fmt::print("  {:<44} {:>10} {:>16} {:>10}{}\n", f.text, gigabytes(f.total), gigabytes(f.worst), gigabytes(f.sent),
               f.worst > memory ? "  worst routing does not fit" : "");
  }
}

std::string percent(double part, double whole) { return fmt::format("{:.1f}%", 100 * part / whole); }

struct Loss {
  const char* name;
  double seconds;
};

// What a step's time goes to besides products, the largest first.
std::vector<Loss> losses(const StepTime& t) {
  std::vector<Loss> result = {{"attention", t.attention},
                              {"memory-bound kernels", t.memory},
                              {"host", t.host},
                              {"tensor parallelism", t.tensor},
                              {"context parallelism", t.context},
                              {"rows to experts", t.expert},
                              {"sends between stages", t.sends},
                              {"pipeline bubble", t.bubble},
                              {"gradients", t.gradients},
                              {"weights", t.weights},
                              {"optimizer", t.optimizer}};
  std::ranges::sort(result, std::greater<>(), &Loss::seconds);
  return result;
}

void print_assumptions(const GpuCluster& cluster, const SendingRules& rules) {
  fmt::print("\nassumed (formulas, sources and published steps that check them: dropcycle/model/step_time.hpp)\n");
  for (const std::string& line : assumptions(cluster, rules)) fmt::print("  {}\n", line);
}

void print_step_time(const Config& config, int ranks, const GpuCluster& cluster) {
  const StepTime t = step_time(config, ranks, cluster, own_rules(config));
  fmt::print("\na step takes {:.3g} s: {:.0f} tokens/s, {:.1f}% of the GPUs' operations (MFU), {} communication\n",
             t.total(), t.tokens_per_second, 100 * t.mfu, percent(t.communication(), t.total()));
  fmt::print("  {:<22} {:>7}\n", "products", percent(t.products, t.total()));
  for (const Loss& loss : losses(t)) {
    if (loss.seconds > 0) fmt::print("  {:<22} {:>7}\n", loss.name, percent(loss.seconds, t.total()));
  }
}

void print_fastest(const Config& config, int ranks, const GpuCluster& cluster) {
  constexpr std::size_t kShown = 5, kReasons = 3;
  int tried = 0;
  const auto found = fastest_layouts(config, ranks, cluster, kShown, tried);
  fmt::print("\nof {} layouts the fastest that fit into {} less {} for libraries\n", tried,
             gigabytes(cluster.memory_bytes), gigabytes(cluster.reserved_bytes));
  if (found.empty()) {
    fmt::print("  none fits: take more ranks\n");
    return;
  }
  fmt::print("  {:<54} {:>3} {:<9} {:>8} {:>8} {:>9} {:>6} {:>7}  {}\n", "layout", "mb", "recompute", "needs", "step",
             "tokens/s", "MFU", "sending", "most of the rest goes to");
  for (const LayoutChoice& choice : found) {
    const StepTime& t = choice.time;
    std::string reasons;
    const std::vector<Loss> lost = losses(t);
    for (const Loss& loss : std::span(lost).first(kReasons)) {
      reasons += fmt::format("{}{} {}", reasons.empty() ? "" : ", ", loss.name, percent(loss.seconds, t.total()));
    }
    fmt::print("  {:<54} {:>3} {:<9} {:>8} {:>6.3g} s {:>9.0f} {:>5.1f}% {:>7}  {}\n",
               describe(choice.plan, choice.config) + (choice.config.parallel.overlap_dispatch ? ", halves" : ""),
               choice.config.train.micro_batch, choice.config.train.recompute, gigabytes(choice.plan.fullest().total()),
               t.total(), t.tokens_per_second, 100 * t.mfu, percent(t.communication(), t.total()), reasons);
  }
}

void plan(const PlanVerb& verb) {
  Config config = load_config(verb.file, verb.overrides);
  resolve(config);
  const std::string& type = config.device.compute_dtype;
  PlanOptions options{.compute = type == "auto" ? DType::bf16 : parse_dtype(type),
                      .packed_weights = verb.device == "cpu",
                      .evaluates = !config.data.valid.empty()};
  const Plan balanced = make_plan(config, verb.ranks, options);
  fmt::print("{} on {} ranks: {}\n", verb.file, verb.ranks, describe(balanced, config));
  fmt::print("{}, microbatches of {} x {} tokens, {} a rank and step, recompute {}, optimizer {}\n\n",
             name(options.compute), config.train.micro_batch, config.data.sequence_length, balanced.microbatches,
             config.train.recompute, config.parallel.shard_optimizer ? "sharded" : "whole on every rank");
  fmt::print("memory of the fullest rank{}\n",
             config.model.is_moe() ? ", experts' rows shared evenly by the router" : "");
  print_stages(balanced);
  if (balanced.worst_expert_load > 1) {
    PlanOptions worst = options;
    worst.expert_load = worst_of(balanced);
    const Plan unbalanced = make_plan(config, verb.ranks, worst);
    fmt::print("the same where every token of an expert group goes to one rank, {:.1f} times its share\n",
               balanced.worst_expert_load);
    print_stages(unbalanced);
  }
  print_traffic(balanced);
  GpuCluster cluster;
  if (!verb.memory.empty()) cluster.memory_bytes = parse_memory(verb.memory);
  const bool timed = verb.device == "h100";
  if (timed) print_step_time(config, verb.ranks, cluster);
  if (!verb.memory.empty()) print_verdict(config, verb.ranks, options, balanced, cluster.memory_bytes);
  if (verb.search && timed) {
    print_fastest(config, verb.ranks, cluster);
  } else if (verb.search) {
    if (verb.memory.empty()) fail(Status::usage, "--search needs --memory-per-rank, or --device h100");
    print_search(config, verb.ranks, options, cluster.memory_bytes);
  }
  if (timed) print_assumptions(cluster, own_rules(config));
}

}  // namespace

void add_plan(CLI::App& app) {
  auto options = std::make_shared<PlanVerb>();
  CLI::App* verb = app.add_subcommand("plan", "Memory and communication of a layout, before anything is started");
  verb->add_option("CONFIG", options->file, "A TOML file")->required();
  verb->add_option("--ranks", options->ranks, "Ranks of the run")->required()->check(CLI::Range(1, 1 << 20));
  verb->add_option("--memory-per-rank", options->memory,
                   "Says whether it fits, and what would: 94GB, 80GiB (h100: 80GB)");
  verb->add_flag("--search", options->search,
                 "Tries every layout of powers of two, lists those that fit; with h100 also microbatches and "
                 "recomputation, the fastest first");
  verb->add_option("--device", options->device,
                   "gpu: without the CPU backend's packed copies of the weights; h100: also the time of a step")
      ->check(CLI::IsMember({"cpu", "gpu", "h100"}))
      ->capture_default_str();
  add_set_option(*verb, options->overrides);
  verb->footer(
      "\nCounts tensors: not the program, MPI's buffers or a GPU's context.\n\nExamples:\n"
      "  dropcycle plan configs/experiment/quickstart_drop.toml --ranks 2 --memory-per-rank 2GB\n"
      "  dropcycle plan configs/experiment/moe_8x3_7b_drop.toml --ranks 64 --device gpu --memory-per-rank 94GB "
      "--search\n"
      "  dropcycle plan configs/experiment/moe_8x3_7b_drop.toml --ranks 64 --device h100 --search");
  verb->callback([options] { plan(*options); });
}

}  // namespace dropcycle
