// Runs an operation on three backends with the same inputs: exact (reference in float64), plain (PlainOps) and cpu.
#pragma once

#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/ops/backends.hpp"
#include "ops_plain.hpp"

namespace dropcycle::test {

inline Ops& cpu_ops() {
  static const auto ops = make_cpu_ops({});
  return *ops;
}

// One run: makes inputs (the same for every backend) and remembers outputs.
class Run {
 public:
  // `grid` is the type that all inputs are rounded to, `compute` the one that they are stored in.
  Run(Ops& ops_, DType compute_, DType grid)
      : ops(ops_), compute(compute_), acc(accumulator_of(compute_)), grid_(grid) {}

  Ops& ops;
  DType compute, acc;

  // Normal values of compute's precision; of acc's with `acc` as type.
  Tensor normal(DType type, const Shape& shape, double deviation = 1, double mean = 0) {
    const RandomStream stream(7, Purpose::test, "input", ++inputs_);
    std::vector<float> values(static_cast<std::size_t>(shape.elements()));
    stream.fill_normal(Tensor(values.data(), shape), 0, mean, deviation);
    if (type == compute && grid_ == DType::bf16) {
      for (float& value : values) value = static_cast<float>(BF16(value));
    }
    const Tensor out = empty(type, shape);
    reference::write({values.begin(), values.end()}, out);
    return out;
  }
  Tensor indices(const Shape& shape, std::int64_t lowest, std::int64_t end) {
    const RandomStream stream(7, Purpose::test, "index", ++inputs_);
    const Tensor out = empty(DType::i32, shape);
    for (std::int64_t i = 0; i < out.elements(); ++i) {
      out.as<std::int32_t>()[i] = static_cast<std::int32_t>(lowest + stream.bits(static_cast<std::uint64_t>(i)) %
                                                                         static_cast<std::uint64_t>(end - lowest));
    }
    return out;
  }
  Tensor integers(const std::vector<std::int32_t>& values, const Shape& shape) {
    const Tensor out = empty(DType::i32, shape);
    std::memcpy(out.data, values.data(), values.size() * 4);
    return out;
  }
  Tensor empty(DType type, const Shape& shape) { return tensors_.emplace_back(type, shape).view(); }

  // Marks results: read when the run is over.
  void output(const std::string& name, const Tensor& tensor) { outputs_.push_back({name, tensor}); }
  const std::vector<std::pair<std::string, Tensor>>& outputs() const { return outputs_; }

 private:
  DType grid_;
  std::uint64_t inputs_ = 0;
  std::deque<OwnedTensor> tensors_;
  std::vector<std::pair<std::string, Tensor>> outputs_;
};

using Body = std::function<void(Run&)>;

// Of one stored number: u = 2^-24 or 2^-9 relative to `values`' size. On a handful of elements the plain loops may be
// right by chance, so that less than this is never asked for.
inline double rounding(const std::vector<double>& values, DType type) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  const double unit = type == DType::f32 ? 0x1p-24 : type == DType::bf16 ? 0x1p-9 : 0;
  return unit * std::sqrt(sum / static_cast<double>(std::max<std::size_t>(1, values.size())));
}

inline double root_mean_square(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum / static_cast<double>(std::max<std::size_t>(1, a.size())));
}

// Every output of the cpu backend errs at most twice as much as the plain loops do; and one thread gives the bits of
// three.
inline void check_against_float64(const std::string& what, const Body& body) {
  PlainOps plain_ops;
  ReferenceOps exact_ops;
  for (const DType type : {DType::f32, DType::bf16}) {
    Run exact(exact_ops, DType::f64, type), plain(plain_ops, type, type), cpu(cpu_ops(), type, type),
        single(cpu_ops(), type, type);
    body(exact);
    body(plain);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(3);
    body(cpu);
    omp_set_num_threads(1);
    body(single);
    omp_set_num_threads(threads);
    for (std::size_t i = 0; i < cpu.outputs().size(); ++i) {
      const auto& [label, tensor] = cpu.outputs()[i];
      INFO(what, " ", label, " ", std::string(name(type)));
      const auto want = reference::read(exact.outputs()[i].second);
      const double plain_error = root_mean_square(reference::read(plain.outputs()[i].second), want);
      const double allowed = 2 * std::max(plain_error, rounding(want, tensor.dtype));
      const double error = root_mean_square(reference::read(tensor), want);
      const bool good = error <= allowed;  // false for NaN
      CHECK_MESSAGE(good, "error ", error, ", allowed ", allowed);
      const bool same =
          std::memcmp(tensor.data, single.outputs()[i].second.data, static_cast<std::size_t>(tensor.bytes())) == 0;
      CHECK_MESSAGE(same, "the bits depend on the number of threads");
    }
  }
}

}  // namespace dropcycle::test
