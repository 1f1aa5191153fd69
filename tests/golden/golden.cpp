#include "golden.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <set>

#include "dropcycle/core/file.hpp"
#include "dropcycle/model/decoder.hpp"
#include "dropcycle/optim/adamw.hpp"

namespace dropcycle::test {
namespace {

template <class T>
std::vector<double> widened(const char* data, std::size_t bytes) {
  std::vector<T> values(bytes / sizeof(T));
  std::memcpy(values.data(), data, bytes);
  return {values.begin(), values.end()};
}

std::vector<double> to_doubles(Ops& ops, const Tensor& x) {
  std::vector<double> values(static_cast<std::size_t>(x.elements()));
  const auto* bytes = static_cast<const char*>(x.data);
  if (x.dtype == DType::f64) return widened<double>(bytes, values.size() * 8);
  OwnedTensor floats(DType::f32, x.shape);
  ops.convert(x, floats);
  std::copy_n(Tensor(floats).as<float>(), values.size(), values.begin());
  return values;
}

void from_doubles(const std::vector<double>& values, const Tensor& x) {
  if (x.dtype == DType::f64) {
    std::copy(values.begin(), values.end(), x.as<double>());
  } else {
    std::transform(values.begin(), values.end(), x.as<float>(), [](double v) { return static_cast<float>(v); });
  }
}

struct Batch {
  Batch(const Golden& golden, std::int64_t index) : batch_size(golden.shape("tokens")[1]) {
    const std::int64_t sequence = golden.shape("tokens")[2], count = batch_size * sequence;
    const auto all_tokens = golden.values("tokens"), all_targets = golden.values("targets");
    for (std::int64_t t = 0; t < count; ++t) {
      const auto place = static_cast<std::size_t>(index * count + t);
      tokens.push_back(static_cast<std::int32_t>(all_tokens[place]));
      targets.push_back(static_cast<std::int32_t>(all_targets[place]));
      positions.push_back(static_cast<std::int32_t>(t % sequence));
    }
    predicted = std::ranges::count_if(targets, [](std::int32_t target) { return target >= 0; });
    const Shape shape{count};
    view = {.batch = batch_size,
            .sequence = sequence,
            .tokens = Tensor(tokens.data(), shape),
            .targets = Tensor(targets.data(), shape),
            .positions = Tensor(positions.data(), shape)};
  }
  std::vector<std::int32_t> tokens, targets, positions;
  std::int64_t batch_size = 0, predicted = 0;
  Microbatch view;
};

std::vector<double> cached_logits(Model& model, const Batch& batch) {
  std::vector<double> result;
  for (std::int64_t b = 0; b < batch.batch_size; ++b) {
    Decoder decoder(model, batch.view.sequence);
    for (std::int64_t s = 0; s < batch.view.sequence; ++s) {
      const std::vector<float> row =
          decoder.append({&batch.tokens[static_cast<std::size_t>(b * batch.view.sequence + s)], 1});
      result.insert(result.end(), row.begin(), row.end());
    }
  }
  return result;
}

}  // namespace

Golden::Golden(const std::filesystem::path& path)
    : name_(path.stem()),
      path_(std::filesystem::path(path).replace_extension(".safetensors")),
      data_(read_file(path_)) {
  config_ = load_config(path, {});
  resolve(config_);
  std::uint64_t length = 0;
  if (data_.size() >= sizeof length) std::memcpy(&length, data_.data(), sizeof length);
  if (!(length > 0 && length < data_.size() - sizeof length)) fail(Status::input, "{}: not a safetensors file", path_);
  const std::uint64_t data_bytes = data_.size() - sizeof length - length;
  for (const auto& found : parse_safetensors_header(data_.substr(sizeof length, length), data_bytes, path_)) {
    entries_[found.name] = found;
  }
}

const SafetensorsEntry& Golden::entry(const std::string& tensor) const {
  const auto place = entries_.find(tensor);
  if (place == entries_.end()) fail(Status::input, "{}: no tensor '{}': run tools/golden", path_, tensor);
  return place->second;
}

const std::vector<std::int64_t>& Golden::shape(const std::string& tensor) const { return entry(tensor).shape; }

std::vector<double> Golden::values(const std::string& tensor) const {
  const SafetensorsEntry& found = entry(tensor);
  const char* data = data_.data() + found.offset;
  if (found.dtype == "F64") return widened<double>(data, found.size_bytes);
  if (found.dtype == "F32") return widened<float>(data, found.size_bytes);
  if (found.dtype == "I32") return widened<std::int32_t>(data, found.size_bytes);
  fail(Status::input, "{}: tensor '{}' is of type {}", path_, tensor, found.dtype);
}

std::vector<std::string> Golden::names(const std::string& prefix) const {
  std::vector<std::string> result;
  for (const auto& [tensor, about] : entries_) {
    if (tensor.starts_with(prefix)) result.push_back(tensor.substr(prefix.size()));
  }
  return result;
}

std::vector<Golden> load_goldens() {
  const char* elsewhere = std::getenv("DROPCYCLE_GOLDEN");
  const std::filesystem::path folder = elsewhere ? std::filesystem::path(elsewhere)
                                                 : std::filesystem::path(DROPCYCLE_SOURCE_DIR) / "tests/golden/models";
  std::set<std::filesystem::path> paths;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() == ".toml") paths.insert(file.path());
  }
  return {paths.begin(), paths.end()};
}

namespace {

// The model of a golden file with its first weights.
struct Subject {
  Subject(const Golden& golden_, Ops& ops_, DType compute)
      : golden(golden_), ops(ops_), model(golden.config().model, groups, ops, compute) {
    const auto masters = model.parameters().sharded_masters();
    if (masters.size() != golden.names("weight/").size()) {
      fail(Status::input, "{}: {} parameters, expected {}", golden.name(), golden.names("weight/").size(),
           masters.size());
    }
    for (const ShardedTensor& part : masters) {
      const auto values = golden.values("weight/" + part.name);
      require(static_cast<std::int64_t>(values.size()) == part.local.elements(), "{}: sizes differ", part.name);
      from_doubles(values, part.local);
    }
    model.weights_changed();
  }

  // Logits and losses of a batch.
  Numbers forward(const Batch& batch) {
    Numbers numbers;
    const DType acc = accumulator_of(model.parameters().compute());
    const OwnedTensor logits(acc, {batch.view.tokens_count(), golden.config().model.vocab_size});
    model.logits(batch.view, logits);
    numbers["logits"] = to_doubles(ops, logits);
    const OwnedTensor losses(acc, {batch.view.tokens_count()});
    model.evaluate(batch.view, losses);
    numbers["losses"] = to_doubles(ops, losses);
    return numbers;
  }

  // Loss, balance, gradients (the store's too) and their norm.
  Numbers backward(const Batch& batch, const AdamW& optimizer) {
    ParameterStore& store = model.parameters();
    for (const GradientGroup group : kGradientGroups) ops.fill_zero(store.gradients(group));
    const double scale = 1.0 / static_cast<double>(batch.predicted),
                 balance = golden.config().train.balance_coefficient;
    const MicrobatchLosses losses = model.forward_backward(
        batch.view, {.token_scale = scale, .router = {.balance = balance, .scope = BalanceScope::all_layers}});
    Numbers numbers{{"loss", {scale * losses.language + balance * losses.balance}},
                    {"balance", {losses.balance}},
                    {"gradient_norm", {optimizer.gradient_norm()}}};
    for (const ShardedTensor& part : store.sharded_gradients()) {
      numbers["gradient/" + part.name] = to_doubles(ops, part.local);
    }
    return numbers;
  }

  const Golden& golden;
  Ops& ops;
  const Groups groups = Groups::single();
  Model model;
};

}  // namespace

Numbers compute(const Golden& golden, Ops& ops, DType compute) {
  constexpr std::int64_t kSteps = 5;
  Subject subject(golden, ops, compute);
  const Batch first(golden, 0);
  Numbers numbers = subject.forward(first);
  numbers["cached logits"] = cached_logits(subject.model, first);
  const OptimizerConfig& config = golden.config().optimizer;
  AdamW optimizer(subject.model, subject.groups, config);
  for (std::int64_t step = 1; step <= kSteps; ++step) {
    Numbers update = subject.backward(Batch(golden, step - 1), optimizer);
    const double norm = update["gradient_norm"][0];
    if (step == 1) numbers.merge(update);
    optimizer.update(step, learning_rate_at(config, kSteps, step), optimizer.clip_factor(norm));
  }
  subject.model.parameters().join_masters(ops);
  for (const ShardedTensor& part : subject.model.parameters().sharded_masters()) {
    numbers["after/" + part.name] = to_doubles(ops, part.local);
  }
  return numbers;
}

std::vector<Numbers> compute_batches(const Golden& golden, Ops& ops, DType compute) {
  Subject subject(golden, ops, compute);
  const AdamW optimizer(subject.model, subject.groups, golden.config().optimizer);
  std::vector<Numbers> result;
  for (std::int64_t b = 0; b < golden.shape("tokens")[0]; ++b) {
    const Batch batch(golden, b);
    result.push_back(subject.forward(batch));
    result.back().merge(subject.backward(batch, optimizer));
  }
  return result;
}

double norm(const std::vector<double>& x) { return distance(x, std::vector<double>(x.size())); }

double distance(const std::vector<double>& x, const std::vector<double>& y) {
  if (x.size() != y.size()) return std::numeric_limits<double>::infinity();
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return std::sqrt(sum);
}

double relative_error(const std::vector<double>& x, const std::vector<double>& y, double least) {
  const double difference = distance(x, y);
  return difference == 0 ? 0 : difference / std::max(norm(y), least);
}

}  // namespace dropcycle::test
