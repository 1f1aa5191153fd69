#include "dropcycle/data/dataset.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dropcycle/core/error.hpp"
#include "dropcycle/core/random.hpp"
#include "dropcycle/data/blend.hpp"
#include "source.hpp"

namespace dropcycle {
namespace {

std::vector<Source> open_sources(const std::vector<SourceConfig>& configs, std::int64_t model_vocabulary,
                                 std::string tokenizer_digest) {
  std::vector<Source> sources;
  for (const SourceConfig& config : configs) {
    const Source& source = sources.emplace_back(config, model_vocabulary, tokenizer_digest);
    tokenizer_digest = source.tokenizer_digest();
  }
  return sources;
}

// Shares of the tokens: the weights, the token counts, or the sources' sizes where neither is given.
std::vector<double> weights_of(const DataConfig& config, const std::vector<Source>& sources) {
  std::vector<double> weights;
  std::size_t weighted = 0, counted = 0;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    const SourceConfig& source = config.train[s];
    weighted += source.weight != 0 ? 1 : 0;
    counted += source.tokens != 0 ? 1 : 0;
    weights.push_back(source.weight + static_cast<double>(source.tokens));
  }
  if (weighted > 0 && counted > 0) {
    fail(Status::usage, "data.train: {} sources have weight and {} have tokens: give all sources the one or the other",
         weighted, counted);
  }
  for (std::size_t s = 0; weighted + counted == 0 && s < sources.size(); ++s) {
    weights[s] = static_cast<double>(sources[s].tokens());
  }
  return weights;
}

std::vector<double> weights_of(const DataState& state) {
  std::vector<double> weights;
  for (const auto& source : state.sources) weights.push_back(source.weight);
  return weights;
}

bool same_mixture(const DataState& a, const DataState& b) {
  return a.sequence_length == b.sequence_length && a.seed == b.seed &&
         std::equal(a.sources.begin(), a.sources.end(), b.sources.begin(), b.sources.end(),
                    [](const auto& x, const auto& y) { return x.name == y.name && x.weight == y.weight; });
}

// The state of a run that goes on from `old` with the mixture of `fresh`.
DataState continue_from(const DataState& old, DataState fresh) {
  for (const auto& source : fresh.sources) {
    for (const auto& before : old.sources) {
      if (source.name != before.name || source.content == before.content) continue;
      fail(Status::input,
           "source {} of data.train has other content (digest {}) than in the checkpoint ({}): restore its shards, or "
           "give the new content another source name",
           source.name, source.content, before.content);
    }
  }
  if (same_mixture(old, fresh)) return old;
  const auto drawn = Blend(weights_of(old), old.seed).counts(old.samples - old.origin);
  for (auto& source : fresh.sources) {
    for (std::size_t s = 0; s < old.sources.size(); ++s) {
      if (source.name != old.sources[s].name) continue;
      const std::uint64_t samples = old.sources[s].samples + drawn[s];
      source.samples =
          samples * static_cast<std::uint64_t>(old.sequence_length) / static_cast<std::uint64_t>(fresh.sequence_length);
    }
  }
  fresh.origin = fresh.samples = old.samples;
  return fresh;
}

}  // namespace

std::string to_string(const SampleOrigin& origin, const std::string& source) {
  return fmt::format("source {}, window {} of pass {}, documents {}..{} of {}", source, origin.window, origin.epoch + 1,
                     origin.first_document, origin.last_document, origin.file);
}

std::string DataState::to_json() const {
  nlohmann::json json = {
      {"sequence_length", sequence_length}, {"seed", seed}, {"origin", origin}, {"samples", samples}};
  json["sources"] = nlohmann::json::array();
  for (const Source& source : sources) {
    json["sources"].push_back(
        {{"name", source.name}, {"weight", source.weight}, {"samples", source.samples}, {"content", source.content}});
  }
  return json.dump();
}

DataState DataState::from_json(const std::string& text) {
  try {
    const auto json = nlohmann::json::parse(text);
    DataState state;
    json.at("sequence_length").get_to(state.sequence_length);
    json.at("seed").get_to(state.seed);
    json.at("origin").get_to(state.origin);
    json.at("samples").get_to(state.samples);
    for (const auto& source : json.at("sources")) {
      state.sources.push_back({source.at("name"), source.at("weight"), source.at("samples"), source.at("content")});
    }
    if (state.sources.empty() || state.sequence_length < 1 || state.samples < state.origin) {
      fail(Status::input, "the checkpoint's data position doesn't make sense: take an earlier checkpoint");
    }
    return state;
  } catch (const nlohmann::json::exception& error) {
    fail(Status::input, "the checkpoint's data position can't be read ({}): take an earlier checkpoint", error.what());
  }
}

// ---- Dataset

struct Dataset::State {
  std::vector<Source> sources;
  DataState position;
  bool reset = false;
  Blend blend;

  std::uint64_t length() const { return static_cast<std::uint64_t>(position.sequence_length); }
  std::uint64_t windows(std::size_t source) const { return (sources[source].tokens() - 1) / length(); }
  SampleOrigin window_of(std::uint64_t index) const;
};

SampleOrigin Dataset::State::window_of(std::uint64_t index) const {
  require(index >= position.origin, "sample {} lies before sample {}, where this mixture began", index,
          position.origin);
  const Blend::Pick pick = blend.at(index - position.origin);
  const std::uint64_t n = position.sources[pick.source].samples + pick.index;
  const std::uint64_t size = windows(pick.source);
  SampleOrigin origin;
  origin.source = pick.source;
  origin.epoch = n / size;
  const RandomStream random(position.seed, Purpose::shuffle, position.sources[pick.source].name, origin.epoch);
  origin.window = permuted_index(random, size, n % size);
  return origin;
}

Dataset::Dataset(const DataConfig& config, std::int64_t model_vocabulary, const std::string& tokenizer_digest,
                 const DataState* resume) {
  if (config.train.empty()) fail(Status::usage, "data.train has no sources: name at least one with its shards");
  std::vector<Source> sources = open_sources(config.train, model_vocabulary, tokenizer_digest);
  const std::vector<double> weights = weights_of(config, sources);
  DataState position;
  position.sequence_length = config.sequence_length;
  position.seed = config.seed;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    if (sources[s].tokens() <= static_cast<std::uint64_t>(config.sequence_length)) {
      fail(Status::input, "{}: source {} has {} tokens, expected more than data.sequence_length = {}",
           sources[s].first_file().string(), sources[s].name(), sources[s].tokens(), config.sequence_length);
    }
    position.sources.push_back({sources[s].name(), weights[s], 0, sources[s].content()});
  }
  if (resume != nullptr) position = continue_from(*resume, std::move(position));
  state_ = std::make_unique<State>(
      State{std::move(sources), std::move(position), config.reset_at_document_end, Blend(weights, config.seed)});
}

Dataset::~Dataset() = default;
Dataset::Dataset(Dataset&&) noexcept = default;

std::int64_t Dataset::sequence_length() const { return state_->position.sequence_length; }
std::uint64_t Dataset::first_sample() const { return state_->position.samples; }

void Dataset::read(std::uint64_t index, const Sample& sample) const {
  const SampleOrigin origin = state_->window_of(index);
  state_->sources[origin.source].fill(origin.window * state_->length(), state_->reset, sample);
}

SampleOrigin Dataset::origin(std::uint64_t index) const {
  SampleOrigin origin = state_->window_of(index);
  const std::uint64_t first = origin.window * state_->length();
  state_->sources[origin.source].locate(first, first + state_->length(), origin);
  return origin;
}

std::string Dataset::describe(std::uint64_t index) const {
  const SampleOrigin found = origin(index);
  return fmt::format("sample {}: {}", index, to_string(found, state_->sources[found.source].name()));
}

std::vector<SourceCounter> Dataset::counters(std::uint64_t samples) const {
  const auto drawn = state_->blend.counts(samples - state_->position.origin);
  std::vector<SourceCounter> counters;
  for (std::size_t s = 0; s < drawn.size(); ++s) {
    const std::uint64_t total = state_->position.sources[s].samples + drawn[s];
    counters.push_back({state_->sources[s].name(), total, total * state_->length(),
                        static_cast<double>(total) / static_cast<double>(state_->windows(s))});
  }
  return counters;
}

DataState Dataset::state(std::uint64_t samples) const {
  DataState state = state_->position;
  state.samples = samples;
  return state;
}

// ---- ValidationSet

struct ValidationSet::State {
  Source source;
  std::uint64_t length;
  bool reset;
};

ValidationSet::ValidationSet(const SourceConfig& source, const DataConfig& config, std::int64_t model_vocabulary,
                             const std::string& tokenizer_digest)
    : state_(std::make_unique<State>(State{Source(source, model_vocabulary, tokenizer_digest),
                                           static_cast<std::uint64_t>(config.sequence_length),
                                           config.reset_at_document_end})) {
  if (tokens() < 2) {
    fail(Status::input, "{}: validation source {} has {} tokens, expected at least 2",
         state_->source.first_file().string(), name(), tokens());
  }
}
ValidationSet::~ValidationSet() = default;
ValidationSet::ValidationSet(ValidationSet&&) noexcept = default;

const std::string& ValidationSet::name() const { return state_->source.name(); }
std::uint64_t ValidationSet::tokens() const { return state_->source.tokens(); }
std::uint64_t ValidationSet::windows() const { return (tokens() - 2) / state_->length + 1; }

std::int64_t ValidationSet::read(std::uint64_t window, const Sample& sample) const {
  require(window < windows(), "validation window {} of {} was asked for", window, windows());
  return state_->source.fill(window * state_->length, state_->reset, sample);
}

}  // namespace dropcycle
