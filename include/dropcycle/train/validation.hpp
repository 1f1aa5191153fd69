// Held-out loss per source, exact over any layout.
#pragma once

#include <cstdint>
#include <vector>

#include "dropcycle/core/config.hpp"
#include "dropcycle/data/dataset.hpp"
#include "dropcycle/model/model.hpp"
#include "dropcycle/train/metrics.hpp"

namespace dropcycle {

class Validation {
 public:
  // Opens the held-out sources of the configuration.
  Validation(const Config& config, const Groups& groups, const std::string& tokenizer_digest);
  bool empty() const { return sets_.empty(); }
  std::size_t sources() const { return sets_.size(); }
  // Mean loss over all predicted tokens of one source (its first eval_batches windows, 0: all). Collective over the
  // world; the same result on all ranks. Adds the choices of experts of this dp rank's microbatches to routing->counts,
  // if given.
  EvalMetrics run(Model& model, std::size_t source, std::int64_t step, RoutingStatistics* routing = nullptr);

 private:
  const Config& config_;
  const Groups& groups_;
  std::vector<ValidationSet> sets_;
};

}  // namespace dropcycle
