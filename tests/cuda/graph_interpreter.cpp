#include "graph_interpreter.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "dropcycle/core/error.hpp"

namespace dropcycle::cuda {
namespace {

std::size_t count(const GraphSizes& sizes) {
  return static_cast<std::size_t>(sizes[0] * sizes[1] * sizes[2] * sizes[3]);
}

template <class Visit>
void for_each_place(const GraphSizes& sizes, Visit&& visit) {
  for (GraphSizes at{}; at[0] < sizes[0]; ++at[0]) {
    for (at[1] = 0; at[1] < sizes[1]; ++at[1]) {
      for (at[2] = 0; at[2] < sizes[2]; ++at[2]) {
        for (at[3] = 0; at[3] < sizes[3]; ++at[3]) visit(at);
      }
    }
  }
}

std::size_t offset(const GraphSizes& at, const GraphSizes& strides) {
  std::int64_t sum = 0;
  for (std::size_t dim = 0; dim < 4; ++dim) sum += at[dim] * strides[dim];
  return static_cast<std::size_t>(sum);
}

double rounded(double value, GraphType type) {
  switch (type) {
    case GraphType::bf16:
      return static_cast<float>(BF16(static_cast<float>(value)));
    case GraphType::f32:
      return static_cast<float>(value);
    case GraphType::i32:
      return std::trunc(value);
    case GraphType::boolean:
      return value != 0 ? 1 : 0;
  }
  return value;
}

// A tensor's values by place, whatever its strides are.
class Values {
 public:
  explicit Values(const GraphTensor& tensor) : tensor_(&tensor), values_(count(tensor.sizes)) {}
  const GraphTensor& tensor() const { return *tensor_; }
  double& at(const GraphSizes& place) { return values_[index(place)]; }
  double at(const GraphSizes& place) const { return values_[index(place)]; }
  // Sizes of 1 stand for every place.
  double spread(GraphSizes place) const {
    for (std::size_t dim = 0; dim < 4; ++dim) {
      if (tensor_->sizes[dim] == 1) place[dim] = 0;
    }
    return at(place);
  }

 private:
  std::size_t index(const GraphSizes& place) const {
    std::int64_t sum = 0;
    for (std::size_t dim = 0; dim < 4; ++dim) {
      require(place[dim] < tensor_->sizes[dim], "place {} of {} in dim {} of a graph's tensor {}", place[dim],
              tensor_->sizes[dim], dim, tensor_->id);
      sum = sum * tensor_->sizes[dim] + place[dim];
    }
    return static_cast<std::size_t>(sum);
  }

  const GraphTensor* tensor_;
  std::vector<double> values_;
};

Values load(const GraphTensor& tensor, const void* memory) {
  Values values(tensor);
  for_each_place(tensor.sizes, [&](const GraphSizes& at) {
    const std::size_t i = tensor.is_by_value ? 0 : offset(at, tensor.strides);
    switch (tensor.type) {
      case GraphType::bf16:
        values.at(at) = static_cast<float>(static_cast<const BF16*>(memory)[i]);
        return;
      case GraphType::f32:
        values.at(at) = static_cast<const float*>(memory)[i];
        return;
      case GraphType::i32:
        values.at(at) = static_cast<const std::int32_t*>(memory)[i];
        return;
      case GraphType::boolean:
        fail(Status::internal, "a graph keeps booleans in memory");
    }
  });
  return values;
}

void store(const Values& values, void* memory) {
  const GraphTensor& tensor = values.tensor();
  for_each_place(tensor.sizes, [&](const GraphSizes& at) {
    const std::size_t i = offset(at, tensor.strides);
    const auto value = static_cast<float>(values.at(at));
    if (tensor.type == GraphType::bf16) {
      static_cast<BF16*>(memory)[i] = BF16(value);
    } else {
      require(tensor.type == GraphType::f32, "a graph writes integers into memory");
      static_cast<float*>(memory)[i] = value;
    }
  });
}

double pointwise(GraphMode mode, double a, double b, double c) {
  switch (mode) {
    case GraphMode::multiply:
      return a * b;
    case GraphMode::add:
      return a + b;
    case GraphMode::subtract:
      return a - b;
    case GraphMode::divide:
      return a / b;
    case GraphMode::exp:
      return std::exp(a);
    case GraphMode::log:
      return std::log(a);
    case GraphMode::identity:
      return a;
    case GraphMode::greater_equal:
      return a >= b ? 1 : 0;
    case GraphMode::select:
      return c != 0 ? a : b;
    default:
      fail(Status::internal, "mode {} of a graph's operation isn't pointwise", static_cast<int>(mode));
  }
}

void multiply_matrices(const Values& a, const Values& b, Values& y) {
  const GraphSizes &m = a.tensor().sizes, &n = b.tensor().sizes, &o = y.tensor().sizes;
  require(m[3] == n[2] && o[2] == m[2] && o[3] == n[3] && m[0] == o[0] && n[0] == o[0] && o[1] % m[1] == 0 &&
              o[1] % n[1] == 0,
          "a graph's product {} doesn't fit its operands {} and {}", y.tensor().id, a.tensor().id, b.tensor().id);
  for_each_place(o, [&](const GraphSizes& at) {
    double sum = 0;
    for (std::int64_t i = 0; i < m[3]; ++i) {
      sum += a.at({at[0], at[1] / (o[1] / m[1]), at[2], i}) * b.at({at[0], at[1] / (o[1] / n[1]), i, at[3]});
    }
    y.at(at) = sum;
  });
}

void reduce(const Values& a, Values& y, bool maximum) {
  const GraphSizes &from = a.tensor().sizes, &to = y.tensor().sizes;
  for (std::size_t dim = 0; dim < 4; ++dim) {
    require(from[dim] % to[dim] == 0, "a graph reduces {} places to {}", from[dim], to[dim]);
  }
  for_each_place(to, [&](const GraphSizes& at) { y.at(at) = maximum ? -INFINITY : 0; });
  for_each_place(from, [&](const GraphSizes& at) {
    GraphSizes place;
    for (std::size_t dim = 0; dim < 4; ++dim) place[dim] = at[dim] / (from[dim] / to[dim]);
    y.at(place) = maximum ? std::max(y.at(place), a.at(at)) : y.at(place) + a.at(at);
  });
}

void relabel(const Values& a, Values& y) {
  const GraphTensor &from = a.tensor(), &to = y.tensor();
  require(count(from.sizes) == count(to.sizes), "a graph relabels {} numbers as {}", count(from.sizes),
          count(to.sizes));
  std::map<std::size_t, double> memory;
  for_each_place(from.sizes, [&](const GraphSizes& at) { memory[offset(at, from.strides)] = a.at(at); });
  for_each_place(to.sizes, [&](const GraphSizes& at) { y.at(at) = memory.at(offset(at, to.strides)); });
}

void run(const GraphOperation& o, const std::vector<const Values*>& in, Values& y) {
  switch (o.mode) {
    case GraphMode::matmul:
      return multiply_matrices(*in.at(0), *in.at(1), y);
    case GraphMode::reduce_max:
    case GraphMode::reduce_sum:
      return reduce(*in.at(0), y, o.mode == GraphMode::reduce_max);
    case GraphMode::relabel:
      return relabel(*in.at(0), y);
    case GraphMode::index:
      return for_each_place(y.tensor().sizes, [&](const GraphSizes& at) {
        y.at(at) = static_cast<double>(at.at(static_cast<std::size_t>(o.axis)));
      });
    default:
      return for_each_place(y.tensor().sizes, [&](const GraphSizes& at) {
        const auto value = [&](std::size_t i) { return i < in.size() ? in[i]->spread(at) : 0.0; };
        y.at(at) = pointwise(o.mode, value(0), value(1), value(2));
      });
  }
}

}  // namespace

void interpret(const Graph& graph, const std::map<std::int64_t, void*>& memory) {
  std::vector<std::optional<Values>> known(graph.tensors.size());
  const auto memory_of = [&](const GraphTensor& tensor) {
    const auto found = memory.find(tensor.id);
    require(found != memory.end() && found->second != nullptr, "no memory for a graph's tensor {}", tensor.id);
    return found->second;
  };
  for (const GraphOperation& o : graph.operations) {
    std::vector<const Values*> inputs;
    for (const std::int64_t id : o.inputs) {
      const GraphTensor& tensor = graph.tensors.at(static_cast<std::size_t>(id));
      auto& values = known[static_cast<std::size_t>(id)];
      require(values.has_value() || !tensor.is_virtual, "a graph reads its virtual tensor {} before it is written", id);
      if (!values) values = load(tensor, memory_of(tensor));
      inputs.push_back(&*values);
    }
    const GraphTensor& tensor = graph.tensors.at(static_cast<std::size_t>(o.output));
    Values y(tensor);
    run(o, inputs, y);
    for_each_place(tensor.sizes, [&](const GraphSizes& at) { y.at(at) = rounded(y.at(at), tensor.type); });
    if (!tensor.is_virtual) store(y, memory_of(tensor));
    known[static_cast<std::size_t>(o.output)] = std::move(y);
  }
}

}  // namespace dropcycle::cuda
