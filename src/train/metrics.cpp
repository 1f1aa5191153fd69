#include "dropcycle/train/metrics.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/file.hpp"

namespace dropcycle {
namespace {

using Json = nlohmann::ordered_json;

double number_at(const Json& object, const char* key) {
  const Json& value = object.at(key);
  return value.is_null() ? kUnknown : value.get<double>();
}

// To five decimals: enough for a share, and a third of the bytes.
std::vector<std::vector<double>> rounded(std::vector<std::vector<double>> shares) {
  for (std::vector<double>& row : shares) {
    for (double& share : row) share = std::round(share * 1e5) / 1e5;
  }
  return shares;
}

template <class Metrics>
Metrics parse_line(const std::string& line, const std::string& where, void (*read)(const Json&, Metrics&)) {
  try {
    Metrics metrics;
    read(Json::parse(line), metrics);
    return metrics;
  } catch (const nlohmann::json::exception& error) {
    fail(Status::input, "{}: not a line of metrics: {}", where, error.what());
  }
}

// The whole lines of a file: a last one without line break was cut off while it was written.
std::vector<std::string> whole_lines(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  std::vector<std::string> lines;
  for (std::size_t begin = 0, end; (end = content.find('\n', begin)) != std::string::npos; begin = end + 1) {
    lines.push_back(content.substr(begin, end - begin));
  }
  return lines;
}

template <class Metrics, class Identity>
std::vector<Metrics> read_lines(const std::filesystem::path& path,
                                Metrics (*parse)(const std::string&, const std::string&), Identity identity) {
  std::map<decltype(identity(Metrics{})), Metrics> last;
  int number = 0;
  for (const std::string& line : whole_lines(path)) {
    Metrics metrics = parse(line, fmt::format("{}:{}", path.string(), ++number));
    last[identity(metrics)] = metrics;
  }
  std::vector<Metrics> result;
  for (auto& [key, metrics] : last) result.push_back(std::move(metrics));
  return result;
}

std::string short_count(double value) {
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

std::string duration(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  const auto total = static_cast<std::int64_t>(std::max(seconds, 0.0) + 0.5);
  if (total >= 3600) return fmt::format("{}h{:02}m", total / 3600, total / 60 % 60);
  return fmt::format("{}m{:02}s", total / 60, total % 60);
}

}  // namespace

double EvalMetrics::perplexity() const { return std::exp(loss); }

double worst_imbalance(const StepMetrics& metrics) {
  double worst = kUnknown;
  for (const std::vector<double>& layer : metrics.expert_load) {
    if (layer.empty()) continue;
    const double most = *std::ranges::max_element(layer) * static_cast<double>(layer.size());
    if (!(worst >= most)) worst = most;
  }
  return worst;
}

std::string to_json(const StepMetrics& metrics) {
  Json json = {{"step", metrics.step},
               {"tokens", metrics.tokens},
               {"loss", metrics.loss},
               {"balance_loss", metrics.balance_loss},
               {"z_loss", metrics.z_loss},
               {"gradient_norm", metrics.gradient_norm},
               {"learning_rate", metrics.learning_rate},
               {"step_seconds", metrics.step_seconds},
               {"tokens_per_second", metrics.tokens_per_second},
               {"product_share", metrics.product_share},
               {"seconds_left", metrics.seconds_left},
               {"expert_load", rounded(metrics.expert_load)},
               {"bytes_sent", metrics.bytes_sent}};
  return json.dump();
}

std::string to_json(const EvalMetrics& metrics) {
  Json json = {{"step", metrics.step},
               {"source", metrics.source},
               {"loss", metrics.loss},
               {"perplexity", metrics.perplexity()},
               {"tokens", metrics.tokens}};
  return json.dump();
}

StepMetrics parse_step_metrics(const std::string& line, const std::string& where) {
  return parse_line<StepMetrics>(line, where, [](const Json& json, StepMetrics& metrics) {
    json.at("step").get_to(metrics.step);
    json.at("tokens").get_to(metrics.tokens);
    metrics.loss = number_at(json, "loss");
    metrics.balance_loss = number_at(json, "balance_loss");
    metrics.z_loss = number_at(json, "z_loss");
    metrics.gradient_norm = number_at(json, "gradient_norm");
    metrics.learning_rate = number_at(json, "learning_rate");
    metrics.step_seconds = number_at(json, "step_seconds");
    metrics.tokens_per_second = number_at(json, "tokens_per_second");
    metrics.product_share = number_at(json, "product_share");
    metrics.seconds_left = number_at(json, "seconds_left");
    json.at("expert_load").get_to(metrics.expert_load);
    if (json.contains("bytes_sent")) json.at("bytes_sent").get_to(metrics.bytes_sent);
  });
}

EvalMetrics parse_eval_metrics(const std::string& line, const std::string& where) {
  return parse_line<EvalMetrics>(line, where, [](const Json& json, EvalMetrics& metrics) {
    json.at("step").get_to(metrics.step);
    json.at("source").get_to(metrics.source);
    metrics.loss = number_at(json, "loss");
    json.at("tokens").get_to(metrics.tokens);
  });
}

std::vector<StepMetrics> read_step_metrics(const std::filesystem::path& run) {
  return read_lines<StepMetrics>(run / "metrics.jsonl", parse_step_metrics,
                                 [](const StepMetrics& m) { return m.step; });
}

std::vector<EvalMetrics> read_eval_metrics(const std::filesystem::path& run) {
  const std::filesystem::path path = run / "eval.jsonl";
  if (!std::filesystem::exists(path)) return {};
  return read_lines<EvalMetrics>(path, parse_eval_metrics,
                                 [](const EvalMetrics& m) { return std::pair(m.step, m.source); });
}

std::string terminal_line(const StepMetrics& metrics, std::int64_t steps) {
  std::string line = fmt::format("step {}/{}", metrics.step, steps);
  const auto add = [&line](double value, const std::string& text) {
    if (!std::isnan(value)) line += "  " + text;
  };
  // What matters most comes first: a narrow terminal cuts the end off.
  add(metrics.seconds_left, "left " + duration(metrics.seconds_left));
  add(metrics.loss, fmt::format("loss {:.4f}", metrics.loss));
  add(metrics.tokens_per_second, fmt::format("{} tokens/s", short_count(metrics.tokens_per_second)));
  add(metrics.product_share, fmt::format("{:.0f}% of product speed", 100 * metrics.product_share));
  add(worst_imbalance(metrics), fmt::format("experts {:.2f}", worst_imbalance(metrics)));
  add(metrics.gradient_norm, fmt::format("norm {:.2f}", metrics.gradient_norm));
  add(metrics.learning_rate, fmt::format("lr {:.2e}", metrics.learning_rate));
  add(metrics.balance_loss, fmt::format("balance {:.3f}", metrics.balance_loss));
  return line;
}

}  // namespace dropcycle
