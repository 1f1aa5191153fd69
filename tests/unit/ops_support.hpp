// Runs an operation on three backends with the same inputs: exact (reference in float64), plain (PlainOps) and the one
// under test, which each program names.
#pragma once

#include <doctest/doctest.h>

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

// The backend under test.
Ops& tested_ops();
// Runs body() in one of two ways, 0 or 1, between which no bit may change: with more threads, or in another order.
void in_way(int way, const std::function<void()>& body);

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
    return given(type, {values.begin(), values.end()}, shape);
  }
  Tensor indices(const Shape& shape, std::int64_t lowest, std::int64_t end) {
    return integers(index_values(shape, lowest, end), shape);
  }
  std::vector<std::int32_t> index_values(const Shape& shape, std::int64_t lowest, std::int64_t end) {
    const RandomStream stream(7, Purpose::test, "index", ++inputs_);
    std::vector<std::int32_t> values;
    for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(shape.elements()); ++i) {
      values.push_back(static_cast<std::int32_t>(lowest + stream.bits(i) % static_cast<std::uint64_t>(end - lowest)));
    }
    return values;
  }
  Tensor integers(const std::vector<std::int32_t>& values, const Shape& shape) {
    return given(DType::i32, {values.begin(), values.end()}, shape);
  }
  Tensor given(DType type, const std::vector<double>& values, const Shape& shape) {
    const OwnedTensor host(type, shape);
    reference::write(values, host);
    const Tensor out = empty(type, shape);
    ops.device().upload(out.data, host.view().data, out.bytes());
    return out;
  }
  Tensor empty(DType type, const Shape& shape) { return tensors_.emplace_back(type, shape, ops.device()).view(); }
  std::vector<double> read(const Tensor& x) const { return reference::read(HostCopy(ops.device(), x)); }

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

// Every output of the backend under test errs at most twice as much as the plain loops do; and both ways of running it
// give the same bits.
inline void check_against_float64(const std::string& what, const Body& body) {
  PlainOps plain_ops;
  ReferenceOps exact_ops;
  for (const DType type : {DType::f32, DType::bf16}) {
    Run exact(exact_ops, DType::f64, type), plain(plain_ops, type, type), tested(tested_ops(), type, type),
        again(tested_ops(), type, type);
    body(exact);
    body(plain);
    in_way(0, [&] { body(tested); });
    in_way(1, [&] { body(again); });
    for (std::size_t i = 0; i < tested.outputs().size(); ++i) {
      const std::string& label = tested.outputs()[i].first;
      const HostCopy found(tested.ops.device(), tested.outputs()[i].second);
      const HostCopy other(again.ops.device(), again.outputs()[i].second);
      INFO(what, " ", label, " ", std::string(name(type)));
      const auto want = reference::read(exact.outputs()[i].second);
      const double plain_error = root_mean_square(reference::read(plain.outputs()[i].second), want);
      const double allowed = 2 * std::max(plain_error, rounding(want, found.view().dtype));
      const double error = root_mean_square(reference::read(found), want);
      const bool good = error <= allowed;  // false for NaN
      CHECK_MESSAGE(good, "error ", error, ", allowed ", allowed);
      const auto bytes = static_cast<std::size_t>(found.view().bytes());
      const bool same = std::memcmp(found.view().data, other.view().data, bytes) == 0;
      CHECK_MESSAGE(same, "the bits depend on the order of work");
    }
  }
}

}  // namespace dropcycle::test
