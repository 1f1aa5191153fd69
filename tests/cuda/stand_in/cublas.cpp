// cuBLASLt's products and cuBLAS's grouped ones, as loops. Column-major, sums in f32.
#include <cublasLt.h>
#include <cublas_v2.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "dropcycle/core/dtype.hpp"
#include "stand_in.hpp"

namespace stand_in {
namespace {

using dropcycle::BF16;

struct Product {
  cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
};
struct Layout {
  cudaDataType type = CUDA_R_32F;
  std::int64_t rows = 0, columns = 0, leading = 0;

  std::int64_t element_bytes() const { return type == CUDA_R_16BF ? 2 : 4; }
  std::int64_t bytes() const { return ((columns - 1) * leading + rows) * element_bytes(); }
  bool operator==(const Layout&) const = default;
};
struct Preference {
  std::uint64_t workspace_bytes = 0;
  std::array<std::uint32_t, 4> alignment = {256, 256, 256, 256};  // cuBLASLt's defaults
};
// What the heuristic's algorithm was made for.
struct Algorithm {
  std::uint32_t magic;
  std::uint32_t alignment;
  std::uint64_t workspace_bytes;
  std::int32_t transpose_a, transpose_b;
  std::int32_t in, out, columns_a, columns_b;
};
constexpr std::uint32_t kMagic = 0x616c676fU;
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

struct Multiplication {
  Product product;
  Layout a, b, c;
  float alpha = 1, beta = 0;

  std::int64_t m() const { return product.transpose_a == CUBLAS_OP_N ? a.rows : a.columns; }
  std::int64_t k() const { return product.transpose_a == CUBLAS_OP_N ? a.columns : a.rows; }
  std::int64_t n() const { return product.transpose_b == CUBLAS_OP_N ? b.columns : b.rows; }
  std::int64_t k_of_b() const { return product.transpose_b == CUBLAS_OP_N ? b.rows : b.columns; }
  std::string describe() const {
    return fmt::format("a product c[{},{}] of a[{},{}]{} and b[{},{}]{}", c.rows, c.columns, a.rows, a.columns,
                       product.transpose_a == CUBLAS_OP_N ? "" : "'", b.rows, b.columns,
                       product.transpose_b == CUBLAS_OP_N ? "" : "'");
  }
};

void check_type(cudaDataType type) {
  demand(type == CUDA_R_16BF || type == CUDA_R_32F, "a matrix of type {}: expected bf16 or f32",
         static_cast<int>(type));
}

void check(const Multiplication& x) {
  for (const Layout& matrix : {x.a, x.b, x.c}) {
    demand(matrix.rows > 0 && matrix.columns > 0 && matrix.leading >= matrix.rows,
           "{}: a matrix of {} rows with leading dimension {}", x.describe(), matrix.rows, matrix.leading);
  }
  demand(x.k() == x.k_of_b() && x.c.rows == x.m() && x.c.columns == x.n(), "{}: the sizes don't fit", x.describe());
  demand(x.a.type == x.b.type, "{}: operands of two types", x.describe());
  demand(x.a.type == CUDA_R_16BF || x.c.type == CUDA_R_32F, "{}: bf16 of f32 operands", x.describe());
}

void check_memory(const Multiplication& x, const void* a, const void* b, const void* c, std::uint32_t alignment,
                  Use at) {
  const auto check_matrix = [&](const void* memory, const Layout& matrix, char name) {
    check_device(memory, static_cast<std::size_t>(matrix.bytes()), fmt::format("{}: {}", x.describe(), name), at);
    const std::int64_t stride = matrix.leading * matrix.element_bytes();
    demand(std::bit_cast<std::uintptr_t>(memory) % alignment == 0 && (matrix.columns == 1 || stride % alignment == 0),
           "{}: {} isn't aligned to {} bytes, as the algorithm expects", x.describe(), name, alignment);
  };
  check_matrix(a, x.a, 'a');
  check_matrix(b, x.b, 'b');
  check_matrix(c, x.c, 'c');
  const auto overlaps = [&](const void* other, const Layout& matrix) {
    const auto *const p = static_cast<const std::byte*>(other), *const q = static_cast<const std::byte*>(c);
    return p < q + x.c.bytes() && q < p + matrix.bytes();
  };
  demand(!overlaps(a, x.a) && !overlaps(b, x.b), "{}: the result overlaps an operand", x.describe());
}

float load(const void* memory, const Layout& matrix, std::int64_t row, std::int64_t column) {
  const std::int64_t at = column * matrix.leading + row;
  return matrix.type == CUDA_R_16BF ? static_cast<float>(static_cast<const BF16*>(memory)[at])
                                    : static_cast<const float*>(memory)[at];
}

// op(matrix) with its inner dimension contiguous: [outer, k].
std::vector<float> pack(const void* memory, const Layout& matrix, bool inner_is_rows) {
  const std::int64_t outer = inner_is_rows ? matrix.columns : matrix.rows;
  const std::int64_t inner = inner_is_rows ? matrix.rows : matrix.columns;
  std::vector<float> packed(static_cast<std::size_t>(outer * inner));
  for (std::int64_t i = 0; i < outer; ++i) {
    for (std::int64_t j = 0; j < inner; ++j) {
      packed[static_cast<std::size_t>(i * inner + j)] =
          inner_is_rows ? load(memory, matrix, j, i) : load(memory, matrix, i, j);
    }
  }
  return packed;
}

float dot(const float* a, const float* b, std::int64_t count) {
  constexpr std::int64_t kLanes = 16;
  std::array<float, kLanes> sums{};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      sums[static_cast<std::size_t>(lane)] += a[i + lane] * b[i + lane];
    }
  }
  float sum = 0;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (const float lane : sums) sum += lane;
  return sum;
}

void multiply(const Multiplication& x, const void* a, const void* b, void* c) {
  const std::vector<float> left = pack(a, x.a, x.product.transpose_a != CUBLAS_OP_N);
  const std::vector<float> right = pack(b, x.b, x.product.transpose_b == CUBLAS_OP_N);
  for (std::int64_t j = 0; j < x.n(); ++j) {
    for (std::int64_t i = 0; i < x.m(); ++i) {
      float value = x.alpha * dot(left.data() + i * x.k(), right.data() + j * x.k(), x.k());
      if (x.beta != 0) value += x.beta * load(c, x.c, i, j);
      const std::int64_t at = j * x.c.leading + i;
      if (x.c.type == CUDA_R_16BF) {
        static_cast<BF16*>(c)[at] = BF16(value);
      } else {
        static_cast<float*>(c)[at] = value;
      }
    }
  }
}

std::int64_t bytes_moved(const Multiplication& x) {
  const auto bytes = [](const Layout& matrix) { return matrix.rows * matrix.columns * matrix.element_bytes(); };
  return bytes(x.a) + bytes(x.b) + bytes(x.c) * (x.beta == 0 ? 1 : 2);
}

template <class T, class Handle>
T& cast(Handle handle, std::string_view call) {
  demand(handle != nullptr, "{} of nothing", call);
  return *reinterpret_cast<T*>(handle);
}

template <class T>
T read(const void* value, std::size_t bytes, std::string_view call) {
  demand(bytes == sizeof(T), "{} with a value of {} bytes, expected {}", call, bytes, sizeof(T));
  T result{};
  std::memcpy(&result, value, sizeof result);
  return result;
}

struct Context {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

// A workspace holds nothing from one product to the next.
void spoil(void* workspace, std::size_t bytes) { std::memset(workspace, 0xFF, std::min<std::size_t>(bytes, 4096)); }

}  // namespace
}  // namespace stand_in

using namespace stand_in;

extern "C" {

const char* cublasGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "failure";
}
const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasGetStatusString(status); }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new Context);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<Context*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* result, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  demand(compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F, "a product that doesn't add and scale in f32");
  *result = reinterpret_cast<cublasLtMatmulDesc_t>(new Product);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete reinterpret_cast<Product*>(product);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  constexpr std::string_view kCall = "cublasLtMatmulDescSetAttribute";
  auto& product = cast<Product>(handle, kCall);
  const auto operation = read<cublasOperation_t>(value, bytes, kCall);
  demand(attribute == CUBLASLT_MATMUL_DESC_TRANSA || attribute == CUBLASLT_MATMUL_DESC_TRANSB, "{} of attribute {}",
         kCall, static_cast<int>(attribute));
  demand(operation == CUBLAS_OP_N || operation == CUBLAS_OP_T, "{}: operation {}", kCall, static_cast<int>(operation));
  (attribute == CUBLASLT_MATMUL_DESC_TRANSA ? product.transpose_a : product.transpose_b) = operation;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* result, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t leading) {
  check_type(type);
  *result = reinterpret_cast<cublasLtMatrixLayout_t>(
      new Layout{type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), leading});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<Layout*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t handle,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
  constexpr std::string_view kCall = "cublasLtMatrixLayoutSetAttribute";
  auto& layout = cast<Layout>(handle, kCall);
  const auto number = static_cast<std::int64_t>(read<std::uint64_t>(value, bytes, kCall));
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      layout.rows = number;
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      layout.columns = number;
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATRIX_LAYOUT_LD:
      layout.leading = number;
      return CUBLAS_STATUS_SUCCESS;
    default:
      die(fmt::format("{} of attribute {}", kCall, static_cast<int>(attribute)));
  }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* result) {
  *result = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete reinterpret_cast<Preference*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  constexpr std::string_view kCall = "cublasLtMatmulPreferenceSetAttribute";
  auto& preference = cast<Preference>(handle, kCall);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      preference.workspace_bytes = read<std::uint64_t>(value, bytes, kCall);
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      preference.alignment[static_cast<std::size_t>(attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES)] =
          read<std::uint32_t>(value, bytes, kCall);
      return CUBLAS_STATUS_SUCCESS;
    default:
      die(fmt::format("{} of attribute {}", kCall, static_cast<int>(attribute)));
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product_handle,
                                              cublasLtMatrixLayout_t a_handle, cublasLtMatrixLayout_t b_handle,
                                              cublasLtMatrixLayout_t c_handle, cublasLtMatrixLayout_t d_handle,
                                              cublasLtMatmulPreference_t preference_handle, int asked,
                                              cublasLtMatmulHeuristicResult_t results[], int* count) {
  constexpr std::string_view kCall = "cublasLtMatmulAlgoGetHeuristic";
  const auto& preference = cast<Preference>(preference_handle, kCall);
  const Multiplication x{cast<Product>(product_handle, kCall), cast<Layout>(a_handle, kCall),
                         cast<Layout>(b_handle, kCall), cast<Layout>(c_handle, kCall)};
  demand(asked > 0 && x.c == cast<Layout>(d_handle, kCall), "{}: results that aren't like c", kCall);
  check(x);
  const Algorithm algorithm{kMagic,
                            std::ranges::min(preference.alignment),
                            preference.workspace_bytes,
                            x.product.transpose_a,
                            x.product.transpose_b,
                            x.a.type,
                            x.c.type,
                            static_cast<std::int32_t>(x.a.columns),
                            static_cast<std::int32_t>(x.b.columns)};
  *count = 1;
  results[0] = {};
  std::memcpy(&results[0].algo, &algorithm, sizeof algorithm);
  results[0].workspaceSize = preference.workspace_bytes;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product_handle, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_handle, const void* b,
                              cublasLtMatrixLayout_t b_handle, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_handle, void* d, cublasLtMatrixLayout_t d_handle,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  constexpr std::string_view kCall = "cublasLtMatmul";
  const Entry entry;
  cast<Context>(handle, kCall);
  Multiplication x{cast<Product>(product_handle, kCall), cast<Layout>(a_handle, kCall),
                   cast<Layout>(b_handle, kCall),        cast<Layout>(c_handle, kCall),
                   *static_cast<const float*>(alpha),    *static_cast<const float*>(beta)};
  check(x);
  demand(x.c == cast<Layout>(d_handle, kCall) && c == d, "{}: the result doesn't take the place of c", x.describe());
  demand(algo != nullptr, "{}: without an algorithm", x.describe());
  Algorithm algorithm{};
  std::memcpy(&algorithm, algo, sizeof algorithm);
  demand(algorithm.magic == kMagic, "{}: an algorithm that the heuristic didn't give", x.describe());
  demand(algorithm.transpose_a == x.product.transpose_a && algorithm.transpose_b == x.product.transpose_b &&
             algorithm.in == x.a.type && algorithm.out == x.c.type,
         "{}: an algorithm for other types or transposes", x.describe());
  // As the real one may, an algorithm found for other sizes refuses some.
  constexpr std::int64_t kPrime = 5;
  const bool same = algorithm.columns_a == x.a.columns && algorithm.columns_b == x.b.columns;
  if (!same && (x.a.columns + x.b.columns) % kPrime == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  demand(workspace_bytes >= algorithm.workspace_bytes, "{}: a workspace of {} bytes, the algorithm wants {}",
         x.describe(), workspace_bytes, algorithm.workspace_bytes);
  if (workspace_bytes > 0) check_device(workspace, workspace_bytes, "cublasLtMatmul's workspace", Use::asked_for);
  check_memory(x, a, b, d, algorithm.alignment, Use::asked_for);
  counters().product_bytes += bytes_moved(x);
  ++counters().products;
  enqueue_once(stream, x.describe(), [=] {
    check_memory(x, a, b, d, algorithm.alignment, Use::runs);
    if (workspace_bytes > 0) spoil(workspace, workspace_bytes);
    multiply(x, a, b, d);
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  *handle = reinterpret_cast<cublasHandle_t>(new Context);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete reinterpret_cast<Context*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  auto& context = cast<Context>(handle, "cublasSetStream");
  context = {stream, nullptr, 0};  // the real one falls back to its own workspace
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
  auto& context = cast<Context>(handle, "cublasSetWorkspace");
  check_device(workspace, bytes, "cublasSetWorkspace", Use::asked_for);
  context.workspace = workspace;
  context.workspace_bytes = bytes;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmGroupedBatchedEx(cublasHandle_t handle, const cublasOperation_t transpose_a[],
                                          const cublasOperation_t transpose_b[], const int m[], const int n[],
                                          const int k[], const void* alpha, const void* const a[],
                                          cudaDataType_t type_a, const int lda[], const void* const b[],
                                          cudaDataType_t type_b, const int ldb[], const void* beta, void* const c[],
                                          cudaDataType_t type_c, const int ldc[], int groups, const int group_size[],
                                          cublasComputeType_t compute) {
  constexpr std::string_view kCall = "cublasGemmGroupedBatchedEx";
  const Entry entry;
  const auto& context = cast<Context>(handle, kCall);
  demand(context.workspace != nullptr, "{} without a workspace allocates one", kCall);
  demand(compute == CUBLAS_COMPUTE_32F && type_a == type_b && type_b == type_c && groups > 0,
         "{}: mixed types or no groups", kCall);
  check_type(type_a);
  std::vector<Multiplication> products;
  for (int g = 0; g < groups; ++g) {
    const bool ta = transpose_a[g] != CUBLAS_OP_N, tb = transpose_b[g] != CUBLAS_OP_N;
    const Multiplication x{{transpose_a[g], transpose_b[g]},
                           {type_a, ta ? k[g] : m[g], ta ? m[g] : k[g], lda[g]},
                           {type_b, tb ? n[g] : k[g], tb ? k[g] : n[g], ldb[g]},
                           {type_c, m[g], n[g], ldc[g]},
                           static_cast<const float*>(alpha)[g],
                           static_cast<const float*>(beta)[g]};
    check(x);
    for (int i = 0; i < group_size[g]; ++i) products.push_back(x);
    counters().product_bytes += group_size[g] * bytes_moved(x);
  }
  counters().products += std::ssize(products);
  const std::size_t pointers = products.size() * sizeof(void*);
  for (const void* const* list : {a, b, const_cast<const void* const*>(c)})
    check_device(list, pointers, kCall, Use::asked_for);
  constexpr std::uint32_t kAlignment = 16;
  enqueue_once(context.stream, std::string(kCall), [=, products = std::move(products)] {
    spoil(context.workspace, context.workspace_bytes);
    for (std::size_t i = 0; i < products.size(); ++i) {
      check_memory(products[i], a[i], b[i], c[i], kAlignment, Use::runs);
      multiply(products[i], a[i], b[i], c[i]);
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
