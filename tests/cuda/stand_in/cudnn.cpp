// cuDNN's backend descriptors, of which an operation graph is read back and interpreted (graph_interpreter.hpp).
#include <cudnn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "graph_interpreter.hpp"
#include "stand_in.hpp"

namespace stand_in {
namespace {

using namespace dropcycle::cuda;

// The handle.
struct Context {
  cudaStream_t stream = nullptr;
};

constexpr std::int64_t kWorkspaceBytes = 4096;

struct Attribute {
  cudnnBackendAttributeType_t type;
  std::int64_t count;
  std::vector<std::byte> values;
};

std::size_t bytes_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
      return 1;
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return 8;
    default:
      return 4;  // enumerations
  }
}

struct Descriptor {
  cudnnBackendDescriptorType_t type;
  bool finalized = false;
  std::map<cudnnBackendAttributeName_t, Attribute> attributes = {};
  std::shared_ptr<const Graph> graph = nullptr;   // of an operation graph, and of what is made of it
  std::map<std::int64_t, std::int64_t> ids = {};  // unique id: the graph's

  template <class T>
  std::vector<T> all(cudnnBackendAttributeName_t name) const {
    const auto found = attributes.find(name);
    if (found == attributes.end()) return {};
    std::vector<T> values(static_cast<std::size_t>(found->second.count));
    demand(values.size() * sizeof(T) == found->second.values.size(), "cuDNN: attribute {} of another type",
           static_cast<int>(name));
    std::memcpy(values.data(), found->second.values.data(), found->second.values.size());
    return values;
  }
  template <class T>
  T one(cudnnBackendAttributeName_t name) const {
    const auto values = all<T>(name);
    demand(values.size() == 1, "cuDNN: a descriptor of type {} has {} of attribute {}", static_cast<int>(type),
           values.size(), static_cast<int>(name));
    return values[0];
  }
  bool has(cudnnBackendAttributeName_t name) const { return attributes.contains(name); }
};

Descriptor& descriptor_of(cudnnBackendDescriptor_t handle) {
  demand(handle != nullptr, "cuDNN: a descriptor that is none");
  return *static_cast<Descriptor*>(handle);
}
const Descriptor& finalized(cudnnBackendDescriptor_t handle) {
  const Descriptor& d = descriptor_of(handle);
  demand(d.finalized, "cuDNN: a descriptor of type {} is used before it is finalized", static_cast<int>(d.type));
  return d;
}
const Descriptor& child(const Descriptor& d, cudnnBackendAttributeName_t name) {
  return finalized(d.one<cudnnBackendDescriptor_t>(name));
}

class GraphReader {
 public:
  explicit GraphReader(Descriptor& d) : ids_(d.ids) {
    for (cudnnBackendDescriptor_t const operation : d.all<cudnnBackendDescriptor_t>(CUDNN_ATTR_OPERATIONGRAPH_OPS)) {
      add(finalized(operation));
    }
    d.graph = std::make_shared<const Graph>(std::move(graph_));
  }

 private:
  std::int64_t tensor(const Descriptor& operation, cudnnBackendAttributeName_t name) {
    const Descriptor& d = child(operation, name);
    const auto unique = d.one<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
    const auto [place, is_new] = ids_.try_emplace(unique, std::ssize(graph_.tensors));
    if (!is_new) return place->second;
    GraphTensor t;
    t.id = place->second;
    t.type = type_of(d.one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE));
    std::ranges::copy(four(d, CUDNN_ATTR_TENSOR_DIMENSIONS), t.sizes.begin());
    std::ranges::copy(four(d, CUDNN_ATTR_TENSOR_STRIDES), t.strides.begin());
    t.is_virtual = d.one<unsigned char>(CUDNN_ATTR_TENSOR_IS_VIRTUAL) != 0;
    t.is_by_value = d.one<unsigned char>(CUDNN_ATTR_TENSOR_IS_BY_VALUE) != 0;
    graph_.tensors.push_back(t);
    return t.id;
  }
  static std::vector<std::int64_t> four(const Descriptor& d, cudnnBackendAttributeName_t name) {
    std::vector<std::int64_t> values = d.all<std::int64_t>(name);
    demand(values.size() == 4, "cuDNN: a tensor of {} dims", values.size());
    return values;
  }
  static GraphType type_of(cudnnDataType_t type) {
    switch (type) {
      case CUDNN_DATA_BFLOAT16:
        return GraphType::bf16;
      case CUDNN_DATA_FLOAT:
        return GraphType::f32;
      case CUDNN_DATA_INT32:
        return GraphType::i32;
      case CUDNN_DATA_BOOLEAN:
        return GraphType::boolean;
      default:
        die(fmt::format("cuDNN: a tensor of type {}", static_cast<int>(type)));
    }
  }

  void add(const Descriptor& d) {
    switch (d.type) {
      case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR: {
        const std::int64_t a = tensor(d, CUDNN_ATTR_OPERATION_MATMUL_ADESC);
        const std::int64_t b = tensor(d, CUDNN_ATTR_OPERATION_MATMUL_BDESC);
        demand(child(d, CUDNN_ATTR_OPERATION_MATMUL_DESC).one<cudnnDataType_t>(CUDNN_ATTR_MATMUL_COMP_TYPE) ==
                   CUDNN_DATA_FLOAT,
               "cuDNN: a product that doesn't add in f32");
        graph_.operations.push_back({GraphMode::matmul, {a, b}, tensor(d, CUDNN_ATTR_OPERATION_MATMUL_CDESC)});
        return;
      }
      case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        return add_pointwise(d);
      case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        return add_reduction(d);
      case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR: {
        const std::int64_t x = tensor(d, CUDNN_ATTR_OPERATION_RESHAPE_XDESC);
        graph_.operations.push_back({GraphMode::relabel, {x}, tensor(d, CUDNN_ATTR_OPERATION_RESHAPE_YDESC)});
        return;
      }
      default:
        die(fmt::format("cuDNN: an operation of type {}", static_cast<int>(d.type)));
    }
  }

  void add_pointwise(const Descriptor& d) {
    static const std::map<cudnnPointwiseMode_t, std::pair<GraphMode, std::size_t>> kModes = {
        {CUDNN_POINTWISE_MUL, {GraphMode::multiply, 2}},
        {CUDNN_POINTWISE_ADD, {GraphMode::add, 2}},
        {CUDNN_POINTWISE_SUB, {GraphMode::subtract, 2}},
        {CUDNN_POINTWISE_DIV, {GraphMode::divide, 2}},
        {CUDNN_POINTWISE_EXP, {GraphMode::exp, 1}},
        {CUDNN_POINTWISE_LOG, {GraphMode::log, 1}},
        {CUDNN_POINTWISE_IDENTITY, {GraphMode::identity, 1}},
        {CUDNN_POINTWISE_GEN_INDEX, {GraphMode::index, 1}},
        {CUDNN_POINTWISE_CMP_GE, {GraphMode::greater_equal, 2}},
        {CUDNN_POINTWISE_BINARY_SELECT, {GraphMode::select, 3}}};
    const Descriptor& how = child(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const auto mode = kModes.find(how.one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE));
    demand(mode != kModes.end(), "cuDNN: an unknown pointwise operation");
    GraphOperation operation{mode->second.first, {}};
    for (const auto input : {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                             CUDNN_ATTR_OPERATION_POINTWISE_TDESC}) {
      if (d.has(input)) operation.inputs.push_back(tensor(d, input));
    }
    demand(operation.inputs.size() == mode->second.second, "cuDNN: a pointwise operation of {} inputs, expected {}",
           operation.inputs.size(), mode->second.second);
    if (operation.mode == GraphMode::index) {
      operation.axis = static_cast<int>(how.one<std::int64_t>(CUDNN_ATTR_POINTWISE_AXIS));
    }
    operation.output = tensor(d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    graph_.operations.push_back(operation);
  }

  void add_reduction(const Descriptor& d) {
    const Descriptor& how = child(d, CUDNN_ATTR_OPERATION_REDUCTION_DESC);
    const auto operation = how.one<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR);
    demand(operation == CUDNN_REDUCE_TENSOR_MAX || operation == CUDNN_REDUCE_TENSOR_ADD, "cuDNN: an unknown reduction");
    const std::int64_t x = tensor(d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC);
    graph_.operations.push_back({operation == CUDNN_REDUCE_TENSOR_MAX ? GraphMode::reduce_max : GraphMode::reduce_sum,
                                 {x},
                                 tensor(d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC)});
  }

  Graph graph_;
  std::map<std::int64_t, std::int64_t>& ids_;
};

// Bytes from the first element of a tensor to its last.
std::size_t extent(const GraphTensor& tensor) {
  std::int64_t last = 0;
  for (std::size_t dim = 0; dim < 4; ++dim) last += (tensor.sizes[dim] - 1) * tensor.strides[dim];
  return static_cast<std::size_t>((last + 1) * (tensor.type == GraphType::bf16 ? 2 : 4));
}

std::int64_t bytes_in_memory(const GraphTensor& tensor) {
  std::int64_t elements = 1;
  for (const std::int64_t size : tensor.sizes) elements *= size;
  return elements * (tensor.type == GraphType::bf16 ? 2 : 4);
}

void execute(const Descriptor& plan, const Descriptor& pack, cudaStream_t stream) {
  const auto ids = pack.all<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = pack.all<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  auto* const workspace = pack.one<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  demand(ids.size() == pointers.size(), "cuDNN: {} ids and {} pointers", ids.size(), pointers.size());
  check_device(workspace, kWorkspaceBytes, "cuDNN's workspace", Use::asked_for);
  std::map<std::int64_t, void*> memory;
  std::vector<std::pair<std::int64_t, float>> numbers;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto known = plan.ids.find(ids[i]);
    demand(known != plan.ids.end(), "cuDNN: memory for a tensor {} that the graph doesn't have", ids[i]);
    const GraphTensor& tensor = plan.graph->tensors[static_cast<std::size_t>(known->second)];
    demand(!tensor.is_virtual, "cuDNN: memory for the virtual tensor {}", ids[i]);
    if (tensor.is_by_value) {
      numbers.emplace_back(tensor.id, *static_cast<const float*>(pointers[i]));
      continue;
    }
    check_device(pointers[i], extent(tensor), "a tensor of cuDNN's", Use::asked_for);
    const std::uintptr_t alignment = tensor.type == GraphType::bf16 ? 16 : 4;
    demand(reinterpret_cast<std::uintptr_t>(pointers[i]) % alignment == 0, "cuDNN: tensor {} isn't aligned to {} bytes",
           ids[i], alignment);
    memory[tensor.id] = pointers[i];
    counters().graph_bytes += bytes_in_memory(tensor);
  }
  ++counters().graphs;
  enqueue_once(stream, "an operation graph", [graph = plan.graph, memory, numbers, workspace] {
    std::memset(workspace, 0xFF, kWorkspaceBytes);
    auto all = memory;
    auto values = numbers;
    for (auto& [id, value] : values) all[id] = &value;
    for (const auto& [id, pointer] : memory) {
      check_device(pointer, extent(graph->tensors[static_cast<std::size_t>(id)]), "a tensor of cuDNN's", Use::runs);
    }
    interpret(*graph, all);
  });
}

}  // namespace
}  // namespace stand_in

using namespace stand_in;

extern "C" {

const char* cudnnGetErrorString(cudnnStatus_t status) { return status == CUDNN_STATUS_SUCCESS ? "success" : "failure"; }
void cudnnGetLastErrorString(char* text, size_t size) {
  if (size > 0) *text = '\0';
}

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  *handle = reinterpret_cast<cudnnHandle_t>(new stand_in::Context);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete reinterpret_cast<stand_in::Context*>(handle);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  reinterpret_cast<stand_in::Context*>(handle)->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* result) {
  *result = new Descriptor{type};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Descriptor*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  Descriptor& d = descriptor_of(descriptor);
  demand(!d.finalized, "cuDNN: attribute {} of a descriptor that is finalized", static_cast<int>(name));
  const auto* const bytes = static_cast<const std::byte*>(values);
  d.attributes[name] = {type, count, {bytes, bytes + bytes_of(type) * static_cast<std::size_t>(count)}};
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  Descriptor& d = descriptor_of(descriptor);
  demand(!d.finalized, "cuDNN: a descriptor is finalized twice");
  switch (d.type) {
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      GraphReader{d};
      break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR: {
      const bool is_plan = d.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR;
      const Descriptor& source =
          child(d, is_plan ? CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG : CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
      child(d, is_plan ? CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP : CUDNN_ATTR_ENGINEHEUR_DEVICEPROP);
      d.graph = source.graph;
      d.ids = source.ids;
      break;
    }
    default:
      break;
  }
  d.finalized = true;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t asked, int64_t* count, void* values) {
  const Descriptor& d = finalized(descriptor);
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: {
      *count = 1;
      if (asked == 0) return CUDNN_STATUS_SUCCESS;
      Descriptor& configuration = descriptor_of(*static_cast<cudnnBackendDescriptor_t*>(values));
      configuration.graph = d.graph;
      configuration.ids = d.ids;
      configuration.finalized = true;
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      *count = 1;
      descriptor_of(*static_cast<cudnnBackendDescriptor_t*>(values)).finalized = true;
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
      *count = 0;
      return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
      *count = 1;
      *static_cast<std::int64_t*>(values) = kWorkspaceBytes;
      return CUDNN_STATUS_SUCCESS;
    default:
      die(fmt::format("cudnnBackendGetAttribute of {}", static_cast<int>(name)));
  }
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack) {
  const Entry entry;
  execute(finalized(plan), finalized(pack), reinterpret_cast<stand_in::Context*>(handle)->stream);
  return CUDNN_STATUS_SUCCESS;
}

}  // extern "C"
