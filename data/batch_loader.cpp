#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "dropcycle/core/error.hpp"
#include "dropcycle/data/dataset.hpp"

namespace dropcycle {

struct BatchLoader::State {
  const Dataset& dataset;
  LoaderOptions options;
  std::int64_t micro_batches = 1;

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Batch> ready, used;  // filled batches in order; empty ones to fill again
  std::exception_ptr error;
  bool stop = false;
  Batch current;
  std::thread thread;

  std::uint64_t first_sample_of(std::uint64_t batch) const;
  void fill(Batch& batch, std::uint64_t number) const;
  void run();
};

std::uint64_t BatchLoader::State::first_sample_of(std::uint64_t batch) const {
  const auto micro_batches_u = static_cast<std::uint64_t>(micro_batches);
  const std::uint64_t step = batch / micro_batches_u, micro = batch % micro_batches_u;
  return options.first_sample + step * static_cast<std::uint64_t>(options.global_batch) +
         (micro * static_cast<std::uint64_t>(options.data_ranks) + static_cast<std::uint64_t>(options.data_rank)) *
             static_cast<std::uint64_t>(options.micro_batch);
}

void BatchLoader::State::fill(Batch& batch, std::uint64_t number) const {
  const auto length = static_cast<std::size_t>(dataset.sequence_length());
  const auto sequences = static_cast<std::size_t>(options.micro_batch);
  batch.first_sample = first_sample_of(number);
  for (auto* values : {&batch.tokens, &batch.targets, &batch.positions, &batch.first_key}) {
    values->resize(sequences * length);
  }
  for (std::size_t b = 0; b < sequences; ++b) {
    const auto row = [&](std::vector<std::int32_t>& values) { return std::span(values).subspan(b * length, length); };
    dataset.read(batch.first_sample + b,
                 {row(batch.tokens), row(batch.targets), row(batch.positions), row(batch.first_key)});
  }
}

void BatchLoader::State::run() {
  try {
    for (std::uint64_t number = 0;; ++number) {
      Batch batch;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return stop || ready.size() < options.ahead; });
        if (stop) return;
        if (!used.empty()) {
          batch = std::move(used.front());
          used.pop_front();
        }
      }
      fill(batch, number);
      const std::lock_guard lock(mutex);
      ready.push_back(std::move(batch));
      changed.notify_all();
    }
  } catch (...) {
    const std::lock_guard lock(mutex);
    error = std::current_exception();
    changed.notify_all();
  }
}

BatchLoader::BatchLoader(const Dataset& dataset, const LoaderOptions& options)
    : state_(new State{dataset, options, 1, {}, {}, {}, {}, nullptr, false, {}, {}}) {
  const std::int64_t at_once = options.micro_batch * options.data_ranks;
  if (at_once < 1 || options.global_batch < 1 || options.global_batch % at_once != 0) {
    fail(Status::usage, "train.global_batch = {} isn't a multiple of train.micro_batch = {} times {} data ranks",
         options.global_batch, options.micro_batch, options.data_ranks);
  }
  require(options.data_rank >= 0 && options.data_rank < options.data_ranks && options.ahead > 0,
          "data rank {} of {} with {} batches ahead", options.data_rank, options.data_ranks, options.ahead);
  state_->micro_batches = options.global_batch / at_once;
  state_->thread = std::thread([this] { state_->run(); });
}

BatchLoader::~BatchLoader() {
  if (!state_->thread.joinable()) return;
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

std::int64_t BatchLoader::micro_batches() const { return state_->micro_batches; }

const Batch& BatchLoader::next() {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.changed.wait(lock, [&] { return !state.ready.empty() || state.error; });
  if (state.ready.empty()) std::rethrow_exception(state.error);
  if (!state.current.tokens.empty()) state.used.push_back(std::move(state.current));
  state.current = std::move(state.ready.front());
  state.ready.pop_front();
  state.changed.notify_all();
  return state.current;
}

}  // namespace dropcycle
