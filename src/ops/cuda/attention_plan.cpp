#include "attention_plan.hpp"

#include <array>

#include "dropcycle/core/error.hpp"

namespace dropcycle::cuda {
namespace {

std::string last_words() {
  std::array<char, 512> text{};
  cudnnGetLastErrorString(text.data(), text.size());
  return text.data();
}

template <class Value>
void set_value(CudnnDescriptor& d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, Value value) {
  d.set(name, type, 1, &value);
}

cudnnDataType_t data_type(GraphType type) {
  switch (type) {
    case GraphType::bf16:
      return CUDNN_DATA_BFLOAT16;
    case GraphType::f32:
      return CUDNN_DATA_FLOAT;
    case GraphType::i32:
      return CUDNN_DATA_INT32;
    case GraphType::boolean:
      return CUDNN_DATA_BOOLEAN;
  }
  fail(Status::internal, "an unknown type of a graph's tensor");
}

CudnnDescriptor tensor_descriptor(const GraphTensor& tensor) {
  const std::int64_t alignment = tensor.type == GraphType::bf16 ? 16 : 4;
  CudnnDescriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set_value(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, data_type(tensor.type));
  d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, tensor.sizes.data());
  d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, tensor.strides.data());
  set_value(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, tensor.id + 1);  // 0 is taken for "none"
  set_value(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment);
  set_value(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, tensor.is_virtual);
  set_value(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, tensor.is_by_value);
  d.finalize();
  return d;
}

cudnnPointwiseMode_t pointwise_mode(GraphMode mode) {
  switch (mode) {
    case GraphMode::multiply:
      return CUDNN_POINTWISE_MUL;
    case GraphMode::add:
      return CUDNN_POINTWISE_ADD;
    case GraphMode::subtract:
      return CUDNN_POINTWISE_SUB;
    case GraphMode::divide:
      return CUDNN_POINTWISE_DIV;
    case GraphMode::exp:
      return CUDNN_POINTWISE_EXP;
    case GraphMode::log:
      return CUDNN_POINTWISE_LOG;
    case GraphMode::identity:
      return CUDNN_POINTWISE_IDENTITY;
    case GraphMode::index:
      return CUDNN_POINTWISE_GEN_INDEX;
    case GraphMode::greater_equal:
      return CUDNN_POINTWISE_CMP_GE;
    case GraphMode::select:
      return CUDNN_POINTWISE_BINARY_SELECT;
    default:
      fail(Status::internal, "mode {} of a graph's operation isn't pointwise", static_cast<int>(mode));
  }
}

// The descriptors of a graph; they outlive the plan's construction.
class Descriptors {
 public:
  explicit Descriptors(const Graph& graph) {
    for (const GraphTensor& tensor : graph.tensors) tensors_.push_back(tensor_descriptor(tensor));
    for (const GraphOperation& operation : graph.operations) add(operation);
  }

  CudnnDescriptor operation_graph() const {
    std::vector<cudnnBackendDescriptor_t> operations;
    for (const CudnnDescriptor& operation : operations_) operations.push_back(operation.get());
    CudnnDescriptor d(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    d.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::ssize(operations), operations.data());
    d.finalize();
    return d;
  }

 private:
  const CudnnDescriptor& tensor(std::int64_t id) const { return tensors_[static_cast<std::size_t>(id)]; }

  void add(const GraphOperation& o) {
    switch (o.mode) {
      case GraphMode::matmul:
        return add_matmul(o);
      case GraphMode::reduce_max:
        return add_reduction(o, CUDNN_REDUCE_TENSOR_MAX);
      case GraphMode::reduce_sum:
        return add_reduction(o, CUDNN_REDUCE_TENSOR_ADD);
      case GraphMode::relabel:
        return add_relabel(o);
      default:
        return add_pointwise(o);
    }
  }

  void add_matmul(const GraphOperation& o) {
    CudnnDescriptor& how = details_.emplace_back(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_value(how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    how.finalize();
    CudnnDescriptor d(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    d.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensor(o.inputs[0]));
    d.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensor(o.inputs[1]));
    d.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensor(o.output));
    d.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    finish(std::move(d));
  }

  void add_pointwise(const GraphOperation& o) {
    const bool on_booleans = o.mode == GraphMode::greater_equal;
    CudnnDescriptor& how = details_.emplace_back(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set_value(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, pointwise_mode(o.mode));
    set_value(how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE,
              on_booleans ? CUDNN_DATA_BOOLEAN : CUDNN_DATA_FLOAT);
    if (o.mode == GraphMode::index) {
      set_value(how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, std::int64_t{o.axis});
    }
    how.finalize();
    CudnnDescriptor d(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    d.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    d.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensor(o.inputs[0]));
    if (o.inputs.size() > 1) d.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, tensor(o.inputs[1]));
    if (o.inputs.size() > 2) d.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, tensor(o.inputs[2]));
    d.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(o.output));
    finish(std::move(d));
  }

  void add_reduction(const GraphOperation& o, cudnnReduceTensorOp_t operation) {
    CudnnDescriptor& how = details_.emplace_back(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set_value(how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, operation);
    set_value(how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    if (o.deterministic) set_value(how, CUDNN_ATTR_REDUCTION_IS_DETERMINISTIC, CUDNN_TYPE_BOOLEAN, true);
    how.finalize();
    CudnnDescriptor d(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    d.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    d.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensor(o.inputs[0]));
    d.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensor(o.output));
    finish(std::move(d));
  }

  void add_relabel(const GraphOperation& o) {
    CudnnDescriptor d(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    d.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensor(o.inputs[0]));
    d.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensor(o.output));
    finish(std::move(d));
  }

  void finish(CudnnDescriptor d) {
    d.finalize();
    operations_.push_back(std::move(d));
  }

  std::vector<CudnnDescriptor> tensors_, details_, operations_;
};

std::vector<CudnnDescriptor> proposals(const CudnnDescriptor& graph, const CudnnDescriptor& device) {
  CudnnDescriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  set_value(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device);
  heuristic.finalize();
  const auto get = [&](std::int64_t asked, std::int64_t& count, cudnnBackendDescriptor_t* into) {
    check_cudnn(cudnnBackendGetAttribute(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                         asked, &count, into),
                "cudnnBackendGetAttribute(ENGINEHEUR_RESULTS)");
  };
  std::int64_t count = 0;
  get(0, count, nullptr);
  std::vector<CudnnDescriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < count; ++i) {
    raw.push_back(configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get());
  }
  if (count > 0) get(count, count, raw.data());
  configurations.erase(configurations.begin() + count, configurations.end());
  return configurations;
}

bool varies_in_order(const CudnnDescriptor& configuration) {
  const CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  std::int64_t count = 0;
  check_cudnn(cudnnBackendGetAttribute(configuration.get(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                       1, &count, &raw),
              "cudnnBackendGetAttribute(ENGINECFG_ENGINE)");
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  check_cudnn(cudnnBackendGetAttribute(engine.get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                       std::ssize(notes), &count, notes.data()),
              "cudnnBackendGetAttribute(ENGINE_NUMERICAL_NOTE)");
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return true;
  }
  return false;
}

}  // namespace

void check_cudnn(cudnnStatus_t result, const char* call) {
  if (result == CUDNN_STATUS_SUCCESS) return;
  fail(Status::internal, "{}: {} ({})", call, cudnnGetErrorString(result), last_words());
}

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
  check_cudnn(cudnnBackendCreateDescriptor(type, &descriptor_), "cudnnBackendCreateDescriptor");
}

CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) cudnnBackendDestroyDescriptor(descriptor_);
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
                          const void* values) {
  const cudnnStatus_t result = cudnnBackendSetAttribute(descriptor_, name, type, count, values);
  if (result != CUDNN_STATUS_SUCCESS) {
    fail(Status::internal, "cudnnBackendSetAttribute({}): {} ({})", static_cast<int>(name), cudnnGetErrorString(result),
         last_words());
  }
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
  cudnnBackendDescriptor_t raw = value.get();
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
}

void CudnnDescriptor::finalize() { check_cudnn(cudnnBackendFinalize(descriptor_), "cudnnBackendFinalize"); }

CudnnDescriptor device_properties(cudnnHandle_t handle) {
  CudnnDescriptor d(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  set_value(d, CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, handle);
  d.finalize();
  return d;
}

CudnnDescriptor device_properties(const std::string& json) {
  CudnnDescriptor d(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  d.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, std::ssize(json), json.data());
  d.finalize();
  return d;
}

CudnnPlan::CudnnPlan(const Graph& graph, const CudnnDescriptor& device, bool deterministic)
    : plan_(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
  const Descriptors descriptors(graph);
  const CudnnDescriptor operations = descriptors.operation_graph();
  cudnnStatus_t result = CUDNN_STATUS_NOT_SUPPORTED;
  for (const CudnnDescriptor& configuration : proposals(operations, device)) {
    if (deterministic && varies_in_order(configuration)) continue;
    plan_ = CudnnDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan_.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    plan_.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device);
    result = cudnnBackendFinalize(plan_.get());
    if (result == CUDNN_STATUS_SUCCESS) break;
  }
  check_cudnn(result, "cuDNN has no plan for a graph");
  std::int64_t count = 0;
  check_cudnn(cudnnBackendGetAttribute(plan_.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                       &count, &workspace_bytes_),
              "cudnnBackendGetAttribute(EXECUTION_PLAN_WORKSPACE_SIZE)");
}

void CudnnPlan::execute(cudnnHandle_t handle, std::span<const std::pair<std::int64_t, void*>> memory,
                        void* workspace) const {
  std::vector<std::int64_t> ids;
  std::vector<void*> pointers;
  for (const auto& [id, pointer] : memory) {
    ids.push_back(id + 1);
    pointers.push_back(pointer);
  }
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::ssize(ids), ids.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::ssize(pointers), pointers.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack.finalize();
  check_cudnn(cudnnBackendExecute(handle, plan_.get(), pack.get()), "cudnnBackendExecute");
}

}  // namespace dropcycle::cuda
