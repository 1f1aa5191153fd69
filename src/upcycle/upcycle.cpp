#include "dropcycle/upcycle/upcycle.hpp"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "dropcycle/core/convert.hpp"
#include "dropcycle/core/digest.hpp"
#include "dropcycle/core/error.hpp"
#include "dropcycle/core/random.hpp"
#include "dropcycle/core/threads.hpp"
#include "statistics.hpp"

namespace dropcycle {
namespace {

struct ExpertMatrix {
  std::int64_t layer = 0, expert = 0;
  FfnMatrix matrix = FfnMatrix::gate;
};

// Takes `prefix` and a number off the front of `text`.
std::optional<std::int64_t> take_number(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return std::nullopt;
  std::int64_t number = 0;
  const auto [end, code] = std::from_chars(text.data() + prefix.size(), text.data() + text.size(), number);
  if (code != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

// "layers.3.moe.experts.5.gate"; nothing for any other parameter.
std::optional<ExpertMatrix> parse_expert(std::string_view text) {
  const auto layer = take_number(text, "layers.");
  if (!layer) return std::nullopt;
  const auto expert = take_number(text, ".moe.experts.");
  if (!expert) return std::nullopt;
  for (const FfnMatrix matrix : {FfnMatrix::gate, FfnMatrix::up, FfnMatrix::down}) {
    if (text.substr(1) == name(matrix)) return ExpertMatrix{*layer, *expert, matrix};
  }
  return std::nullopt;
}

std::string dense_name(const ExpertMatrix& which) {
  return fmt::format("layers.{}.mlp.{}", which.layer, name(which.matrix));
}

// A dense matrix in the type that the MoE's values are computed from, with its statistics.
struct DenseMatrix {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::byte> memory;
  NeuronStatistics neurons;
};

// How the dropped neurons of one matrix are made.
struct Recipe {
  RandomStream stream;
  double mean = 0, standard_deviation = 0;
  bool added = false;         // to the dense weight (noise), or instead of it (drop)
  bool columns = false;       // neurons are columns
  std::vector<char> dropped;  // [F], empty: none
};

// One local row of `count` weights, from element `global` of the matrix on; W is the dense row's type.
template <class W>
void fill_row(const Recipe& recipe, const W* dense, std::int64_t row, std::int64_t first_column, std::int64_t width,
              const Tensor& out, std::vector<double>& draws) {
  const std::int64_t count = out.elements();
  const char* dropped = recipe.dropped.data() + (recipe.columns ? first_column : row);  // of the row's first weight
  if (recipe.dropped.empty() || (!recipe.columns && *dropped == 0)) {
    convert(dense, DTypeOf<W>::value, out.data, out.dtype, count);
    return;
  }
  const auto first = static_cast<std::uint64_t>(row * width + first_column);
  if (!recipe.added && !recipe.columns) {
    recipe.stream.fill_normal(out, first, recipe.mean, recipe.standard_deviation);
    return;
  }
  draws.resize(static_cast<std::size_t>(count));
  recipe.stream.fill_normal(Tensor(draws.data(), Shape{count}), first, recipe.mean, recipe.standard_deviation);
  if (recipe.added) {
    for (std::int64_t i = 0; i < count; ++i) draws[static_cast<std::size_t>(i)] += static_cast<double>(dense[i]);
  }
  if (recipe.columns) {
    for (std::int64_t i = 0; i < count; ++i) {
      const auto place = static_cast<std::size_t>(i);
      draws[place] = dropped[i] != 0 ? draws[place] : static_cast<double>(dense[i]);
    }
  }
  convert(draws.data(), DType::f64, out.data, out.dtype, count);
}

template <class W>
void fill_part(const Recipe& recipe, const W* dense, const ShardedTensor& out) {
  const std::int64_t width = out.global_shape[1], first_row = out.offset[0], first_column = out.offset[1];
  in_parallel(out.local.shape[0], 4, [&](std::int64_t first, std::int64_t last) {
    std::vector<double> draws;
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t row = first_row + i;
      fill_row(recipe, dense + row * width + first_column, row, first_column, width, out.local[i], draws);
    }
  });
}

std::string digest_indices(const std::vector<std::int64_t>& indices) {
  return digest(indices.data(), indices.size() * sizeof(std::int64_t));
}

}  // namespace

void check_fits(const ModelConfig& dense, const ModelConfig& moe) {
  const auto check = [](const char* key, auto in_dense, auto in_moe) {
    if (in_dense == in_moe) return;
    fail(Status::input, "the dense checkpoint doesn't fit the MoE: model.{} is {} there and {} here: make them equal",
         key, in_dense, in_moe);
  };
  if (dense.is_moe()) {
    fail(Status::input, "the checkpoint to upcycle has {} experts already: expected a dense model", dense.experts);
  }
  if (!moe.is_moe()) fail(Status::usage, "model.experts is 0: upcycling makes a mixture of experts, so give a number");
  check("vocab_size", dense.vocab_size, moe.vocab_size);
  check("hidden_size", dense.hidden_size, moe.hidden_size);
  check("intermediate_size", dense.intermediate_size, moe.intermediate_size);
  check("layers", dense.layers, moe.layers);
  check("heads", dense.heads, moe.heads);
  check("kv_heads", dense.kv_heads, moe.kv_heads);
  check("head_size", dense.head_size, moe.head_size);
  check("tie_embeddings", dense.tie_embeddings, moe.tie_embeddings);
  check("norm_epsilon", dense.norm_epsilon, moe.norm_epsilon);
  check("rope_theta", dense.rope_theta, moe.rope_theta);
  check("rope_scaling", dense.rope_scaling, moe.rope_scaling);
  check("rope_factor", dense.rope_factor, moe.rope_factor);
  check("rope_low_frequency_factor", dense.rope_low_frequency_factor, moe.rope_low_frequency_factor);
  check("rope_high_frequency_factor", dense.rope_high_frequency_factor, moe.rope_high_frequency_factor);
  check("rope_original_positions", dense.rope_original_positions, moe.rope_original_positions);
  check("attention_window", dense.attention_window, moe.attention_window);
}

struct Upcycler::State {
  ModelConfig moe;
  InitConfig init;
  ReadWeight read_dense;
  DenseMatrix dense;
  std::vector<DroppedBlock> blocks;

  void load(const ExpertMatrix& which, const Shape& shape, DType dtype) {
    if (dense.name == dense_name(which) && dense.dtype == dtype) return;
    dense.name.clear();  // not that matrix any more, should reading fail
    dense.dtype = dtype;
    dense.memory.resize(static_cast<std::size_t>(shape.elements() * size_bytes(dtype)));
    const Tensor tensor(dense.memory.data(), dtype, shape);
    read_dense(whole(dense_name(which), tensor));
    const auto describe = [&](const auto* w) {
      return which.matrix == FfnMatrix::down ? column_statistics(w, shape[0], shape[1])
                                             : row_statistics(w, shape[0], shape[1]);
    };
    dense.neurons = dtype == DType::f64 ? describe(tensor.as<double>()) : describe(tensor.as<float>());
    dense.name = dense_name(which);
  }

  void fill_expert(const ExpertMatrix& which, const ShardedTensor& out) {
    load(which, out.global_shape, out.local.dtype == DType::f64 ? DType::f64 : DType::f32);
    const std::int64_t neurons = moe.intermediate_size;
    const std::vector<std::int64_t> indices = index_set(init, neurons, which.layer, which.expert, which.matrix);
    const BlockStatistics block = block_statistics(dense.neurons, indices);
    blocks.push_back({which.layer, which.expert, which.matrix, static_cast<std::int64_t>(indices.size()),
                      digest_indices(indices), block.mean, block.standard_deviation});
    const bool noise = init.method == "noise";
    Recipe recipe{RandomStream(init.seed, noise ? Purpose::noise : Purpose::drop, out.name),
                  noise ? 0 : block.mean,
                  noise ? init.noise_std : block.standard_deviation,
                  noise,
                  which.matrix == FfnMatrix::down,
                  {}};
    if (!indices.empty()) recipe.dropped.resize(static_cast<std::size_t>(neurons));
    for (const std::int64_t index : indices) recipe.dropped[static_cast<std::size_t>(index)] = 1;
    if (dense.dtype == DType::f64) {
      fill_part(recipe, reinterpret_cast<const double*>(dense.memory.data()), out);
    } else {
      fill_part(recipe, reinterpret_cast<const float*>(dense.memory.data()), out);
    }
  }
};

Upcycler::Upcycler(const ModelConfig& moe, const ModelConfig& dense, const InitConfig& init, ReadWeight read_dense)
    : state_(std::make_unique<State>()) {
  check_fits(dense, moe);
  dropped_neurons(init.ratio, moe.intermediate_size);
  require(init.method == "naive" || init.method == "drop" || init.method == "noise", "{} isn't an upcycling method",
          init.method);
  state_->moe = moe;
  state_->init = init;
  state_->read_dense = std::move(read_dense);
}

Upcycler::~Upcycler() = default;

const std::vector<DroppedBlock>& Upcycler::blocks() const { return state_->blocks; }

void Upcycler::fill(const ParameterSpec& spec, const ShardedTensor& out) {
  check_bounds(out);
  if (const auto expert = parse_expert(spec.name)) {
    state_->fill_expert(*expert, out);
  } else if (spec.initial == Initial::router) {
    initialise_fresh(spec, state_->init, state_->moe.init_std, out);
  } else {
    state_->read_dense(out);
  }
}

std::vector<std::size_t> Upcycler::order(std::span<const ParameterSpec> specs) {
  using Key = std::tuple<std::int64_t, int, std::int64_t>;
  std::vector<Key> keys;
  for (const ParameterSpec& spec : specs) {
    const auto expert = parse_expert(spec.name);
    keys.push_back(expert ? Key{expert->layer, static_cast<int>(expert->matrix), expert->expert} : Key{-1, 0, 0});
  }
  std::vector<std::size_t> places(specs.size());
  std::iota(places.begin(), places.end(), std::size_t{0});
  std::ranges::stable_sort(places, {}, [&](std::size_t place) { return keys[place]; });
  return places;
}

std::vector<DroppedBlock> initialise(const ModelConfig& model, const InitConfig& init,
                                     std::span<const ParameterSpec> specs, std::span<const ShardedTensor> local,
                                     const ModelConfig& dense, const ReadWeight& read_dense,
                                     const std::function<void(std::int64_t, std::int64_t)>& progress) {
  require(specs.size() == local.size(), "{} parameters but {} tensors", specs.size(), local.size());
  std::int64_t done = 0, all = 0;
  for (const ShardedTensor& tensor : local) all += tensor.local.bytes();
  std::optional<Upcycler> upcycler;
  if (init.method != "scratch") upcycler.emplace(model, dense, init, read_dense);
  for (const std::size_t place : Upcycler::order(specs)) {
    require(specs[place].name == local[place].name, "{} got the tensor of {}", specs[place].name, local[place].name);
    if (upcycler) {
      upcycler->fill(specs[place], local[place]);
    } else {
      initialise_fresh(specs[place], init, model.init_std, local[place]);
    }
    done += local[place].local.bytes();
    if (progress) progress(done, all);
  }
  return upcycler ? upcycler->blocks() : std::vector<DroppedBlock>{};
}

}  // namespace dropcycle
