#include "products.hpp"

#include <cublasLt.h>
#include <cublas_v2.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <tuple>
#include <vector>

#include "dropcycle/core/error.hpp"
#include "dropcycle/device/arena.hpp"

namespace dropcycle::cuda {
namespace {

constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20, kFewestRows = 64, kWidestAlignment = 16;
constexpr std::int64_t kGroupedExperts = 8, kGroupedRows = 256;
constexpr std::size_t kStreams = 4;

void check_cublas(cublasStatus_t status, const char* call) {
  require(status == CUBLAS_STATUS_SUCCESS, "{}: cuBLAS status {}", call, static_cast<int>(status));
}

cudaDataType_t cuda_type(DType type) {
  require(type == DType::bf16 || type == DType::f32, "the cuda backend multiplies f32 and bf16, not {}", name(type));
  return type == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

enum class Kind { forward, dx, dw };

// A product as cuBLAS sees it: c[m,n] = op(a) op(b), k inner, all column-major; b' and c' have T columns, or a and b.
struct Problem {
  Kind kind = Kind::forward;
  std::int64_t rows = 0, outputs = 0, inputs = 0;  // T, O, I
  DType in = DType::bf16, out = DType::bf16;
  std::int64_t alignment = kWidestAlignment;  // of all three, in bytes

  bool transposes_a() const { return kind == Kind::forward; }
  bool transposes_b() const { return kind == Kind::dw; }
  std::int64_t m() const { return kind == Kind::forward ? outputs : inputs; }
  std::int64_t n() const { return kind == Kind::dw ? outputs : rows; }
  std::int64_t k() const { return kind == Kind::forward ? inputs : kind == Kind::dx ? outputs : rows; }
  // As stored: a is w' or x', [I, O] or [I, T]; b is x' or dy', [I or O, T]; c is y', dx' or dw'.
  std::int64_t a_rows() const { return inputs; }
  std::int64_t a_columns() const { return kind == Kind::dw ? rows : outputs; }
  std::int64_t b_rows() const { return kind == Kind::forward ? inputs : outputs; }
  std::int64_t b_columns() const { return rows; }
  float beta() const { return kind == Kind::dw ? 1 : 0; }
  auto key() const { return std::tuple(kind, rows, outputs, inputs, in, out, alignment); }
  bool operator<(const Problem& other) const { return key() < other.key(); }
};

struct Operands {
  const void *a, *b;
  void* c;
};

class Layout {
 public:
  Layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns) {
    check_cublas(cublasLtMatrixLayoutCreate(&layout_, type, static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(columns), rows),
                 "cublasLtMatrixLayoutCreate");
  }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  ~Layout() { cublasLtMatrixLayoutDestroy(layout_); }
  void set_columns(std::int64_t columns) {
    const auto value = static_cast<std::uint64_t>(columns);
    check_cublas(cublasLtMatrixLayoutSetAttribute(layout_, CUBLASLT_MATRIX_LAYOUT_COLS, &value, sizeof value),
                 "cublasLtMatrixLayoutSetAttribute");
  }
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

// How a key's products are described, and the algorithm that the heuristic chose for it.
class Choice {
 public:
  Choice(cublasLtHandle_t handle, const Problem& p)
      : a_(cuda_type(p.in), p.a_rows(), p.a_columns()),
        b_(cuda_type(p.in), p.b_rows(), p.b_columns()),
        c_(cuda_type(p.out), p.m(), p.n()) {
    check_cublas(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSA, p.transposes_a());
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSB, p.transposes_b());
    choose(handle, p);
  }
  Choice(const Choice&) = delete;
  Choice& operator=(const Choice&) = delete;
  ~Choice() { cublasLtMatmulDescDestroy(product_); }

  cublasStatus_t run(cublasLtHandle_t handle, const Problem& p, const Operands& x, void* workspace,
                     cudaStream_t stream) {
    b_.set_columns(p.b_columns());
    (p.kind == Kind::dw ? a_ : c_).set_columns(p.rows);
    const float alpha = 1, beta = p.beta();
    return cublasLtMatmul(handle, product_, &alpha, x.a, a_.get(), x.b, b_.get(), &beta, x.c, c_.get(), x.c, c_.get(),
                          &found_.algo, workspace, static_cast<std::size_t>(kWorkspaceBytes), stream);
  }

 private:
  void set_transposed(cublasLtMatmulDescAttributes_t attribute, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_cublas(cublasLtMatmulDescSetAttribute(product_, attribute, &operation, sizeof operation),
                 "cublasLtMatmulDescSetAttribute");
  }

  void choose(cublasLtHandle_t handle, const Problem& p) {
    cublasLtMatmulPreference_t preference = nullptr;
    check_cublas(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check_cublas(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                   "cublasLtMatmulPreferenceSetAttribute");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(kWorkspaceBytes));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(attribute, static_cast<std::uint32_t>(p.alignment));
    }
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, product_, a_.get(), b_.get(), c_.get(),
                                                                 c_.get(), preference, 1, &found_, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    check_cublas(status, "cublasLtMatmulAlgoGetHeuristic");
    require(count > 0, "cuBLASLt has no algorithm for a product of {} x {} x {}, {} to {}", p.m(), p.n(), p.k(),
            name(p.in), name(p.out));
  }

  Layout a_, b_, c_;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatmulHeuristicResult_t found_{};
};

// The largest power of two, up to 16, that divides all of these.
template <class... Bytes>
std::int64_t common_alignment(Bytes... bytes) {
  const std::int64_t all = (kWidestAlignment | ... | static_cast<std::int64_t>(bytes));
  return all & -all;
}

std::int64_t address(const void* pointer) { return std::bit_cast<std::int64_t>(pointer); }

}  // namespace

struct Products::Impl {
  explicit Impl(CudaDevice& device_)
      : device(device_), workspaces(kWorkspaceBytes * static_cast<std::int64_t>(kStreams + 1), device_) {
    check_cublas(cublasLtCreate(&lt), "cublasLtCreate");
    check_cublas(cublasCreate_v2(&grouped), "cublasCreate");
    check_cublas(cublasSetStream_v2(grouped, device.stream()), "cublasSetStream");
    check_cublas(cublasSetWorkspace_v2(grouped, workspace(0), static_cast<std::size_t>(kWorkspaceBytes)),
                 "cublasSetWorkspace");
  }
  ~Impl() {
    choices.clear();
    cublasDestroy_v2(grouped);
    cublasLtDestroy(lt);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void* workspace(std::size_t stream) const {
    return workspaces.data() + kWorkspaceBytes * static_cast<std::int64_t>(stream);
  }

  Choice& choice(const Problem& p) {
    auto& found = choices[p];
    if (!found) found = std::make_unique<Choice>(lt, p);
    return *found;
  }

  // stream 0 is the device's.
  void run(Problem p, const Operands& x, std::size_t stream) {
    p.alignment = common_alignment(address(x.a), address(x.b), address(x.c), p.a_rows() * size_bytes(p.in),
                                   p.b_rows() * size_bytes(p.in), p.m() * size_bytes(p.out));
    Problem bucket = p;
    bucket.rows = std::max(kFewestRows, static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(p.rows))));
    const cudaStream_t on = stream == 0 ? device.stream() : streams[stream - 1].get();
    cublasStatus_t status = choice(bucket).run(lt, p, x, workspace(stream), on);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
      status = choice(p).run(lt, p, x, workspace(stream), on);
    }
    check_cublas(status, "cublasLtMatmul");
  }

  void run_apart(const std::vector<std::pair<Problem, Operands>>& products) {
    if (products.size() == 1) return run(products.front().first, products.front().second, 0);
    begin.record(device.stream());
    const std::size_t used = std::min(kStreams, products.size());
    for (std::size_t i = 0; i < used; ++i) begin.make_wait(streams[i].get());
    for (std::size_t i = 0; i < products.size(); ++i) run(products[i].first, products[i].second, 1 + i % kStreams);
    for (std::size_t i = 0; i < used; ++i) {
      ends[i].record(streams[i].get());
      ends[i].make_wait(device.stream());
    }
  }

  bool is_grouped(const std::vector<std::pair<Problem, Operands>>& products) const {
    if (std::ssize(products) <= kGroupedExperts) return false;
    std::int64_t rows = 0;
    for (const auto& [p, x] : products) {
      if (p.in != DType::bf16 || p.out != DType::bf16 || p.outputs % 8 != 0 || p.inputs % 8 != 0) return false;
      if (common_alignment(address(x.a), address(x.b), address(x.c)) < kWidestAlignment) return false;
      rows += p.rows;
    }
    return rows < kGroupedRows * std::ssize(products);
  }

  void run_grouped(const std::vector<std::pair<Problem, Operands>>& products) {
    const std::size_t count = products.size();
    std::vector<cublasOperation_t> transa, transb;
    std::vector<int> m, n, k, lda, ldb, ldc;
    const std::vector<int> ones(count, 1);
    const std::vector<float> alpha(count, 1.0F), beta(count, 0.0F);
    std::vector<const void*> pointers(3 * count);
    for (std::size_t i = 0; i < count; ++i) {
      const auto& [p, x] = products[i];
      transa.push_back(p.transposes_a() ? CUBLAS_OP_T : CUBLAS_OP_N);
      transb.push_back(p.transposes_b() ? CUBLAS_OP_T : CUBLAS_OP_N);
      m.push_back(static_cast<int>(p.m()));
      n.push_back(static_cast<int>(p.n()));
      k.push_back(static_cast<int>(p.k()));
      lda.push_back(static_cast<int>(p.a_rows()));
      ldb.push_back(static_cast<int>(p.b_rows()));
      ldc.push_back(static_cast<int>(p.m()));
      pointers[i] = x.a;
      pointers[count + i] = x.b;
      pointers[2 * count + i] = x.c;
    }
    const auto bytes = static_cast<std::int64_t>(pointers.size() * sizeof(void*));
    if (uploaded.size_bytes() < bytes) uploaded = Buffer(bytes, device);
    device.upload(uploaded.data(), pointers.data(), bytes);
    auto* const* a = reinterpret_cast<void* const*>(uploaded.data());
    check_cublas(cublasGemmGroupedBatchedEx(grouped, transa.data(), transb.data(), m.data(), n.data(), k.data(),
                                            alpha.data(), a, CUDA_R_16BF, lda.data(), a + count, CUDA_R_16BF,
                                            ldb.data(), beta.data(), a + 2 * count, CUDA_R_16BF, ldc.data(),
                                            static_cast<int>(count), ones.data(), CUBLAS_COMPUTE_32F),
                 "cublasGemmGroupedBatchedEx");
  }

  // One product for each expert that has rows. x and y are the tensors of T rows, w the one of E experts.
  template <class OperandsOf>
  void run_experts(Problem p, std::span<const std::int64_t> offsets, const Tensor& w, const OperandsOf& operands) {
    require(w.shape.dims() == 3 && std::ssize(offsets) == w.shape[0] + 1, "{} offsets for experts {}", offsets.size(),
            to_string(w.shape));
    std::vector<std::pair<Problem, Operands>> products;
    for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
      p.rows = offsets[e + 1] - offsets[e];
      require(p.rows >= 0, "the offsets of experts {} and {} fall", e, e + 1);
      if (p.rows > 0) products.emplace_back(p, operands(offsets[e], static_cast<std::int64_t>(e)));
    }
    if (products.empty()) return;
    is_grouped(products) ? run_grouped(products) : run_apart(products);
  }

  CudaDevice& device;
  Buffer workspaces, uploaded;
  cublasLtHandle_t lt = nullptr;
  cublasHandle_t grouped = nullptr;
  std::array<CudaStream, kStreams> streams;
  CudaEvent begin;
  std::array<CudaEvent, kStreams> ends;
  std::map<Problem, std::unique_ptr<Choice>> choices;
};

namespace {

const void* row(const Tensor& x, std::int64_t index) {
  return static_cast<const std::byte*>(x.data) + index * x.shape[1] * size_bytes(x.dtype);
}
void* expert(const Tensor& w, std::int64_t index) {
  return static_cast<std::byte*>(w.data) + index * w.shape[1] * w.shape[2] * size_bytes(w.dtype);
}

// `wide` [T, O], `narrow` [T, I], `w` [O, I] or [E, O, I]; `result` is one of them.
Problem checked(Kind kind, const Tensor& wide, const Tensor& narrow, const Tensor& w, const Tensor& result) {
  const int last = w.shape.dims() - 1;
  const Problem p{
      kind,         wide.shape[0],   w.shape[last - 1], w.shape[last], kind == Kind::dx ? wide.dtype : narrow.dtype,
      result.dtype, kWidestAlignment};
  const DType other = kind == Kind::dw ? wide.dtype : w.dtype;
  require(wide.shape.dims() == 2 && narrow.shape.dims() == 2 && narrow.shape[0] == p.rows &&
              wide.shape[1] == p.outputs && narrow.shape[1] == p.inputs && p.in == other,
          "a product of {} {} and {} {} with {} {}", name(wide.dtype), to_string(wide.shape), name(narrow.dtype),
          to_string(narrow.shape), name(w.dtype), to_string(w.shape));
  require(kind != Kind::dw || p.out == DType::f32, "gradients of weights in {}", name(p.out));
  return p;
}

}  // namespace

Products::Products(CudaDevice& device) : impl_(std::make_unique<Impl>(device)) {}
Products::~Products() = default;

void Products::linear(const Tensor& x, const Tensor& w, const Tensor& y) {
  const Problem p = checked(Kind::forward, y, x, w, y);
  if (p.rows > 0) impl_->run(p, {w.data, x.data, y.data}, 0);
}

void Products::linear_dx(const Tensor& dy, const Tensor& w, const Tensor& dx) {
  const Problem p = checked(Kind::dx, dy, dx, w, dx);
  if (p.rows > 0) impl_->run(p, {w.data, dy.data, dx.data}, 0);
}

void Products::linear_dw(const Tensor& dy, const Tensor& x, const Tensor& dw) {
  const Problem p = checked(Kind::dw, dy, x, dw, dw);
  if (p.rows > 0) impl_->run(p, {x.data, dy.data, dw.data}, 0);
}

void Products::grouped_linear(const Tensor& x, std::span<const std::int64_t> offsets, const Tensor& w,
                              const Tensor& y) {
  impl_->run_experts(checked(Kind::forward, y, x, w, y), offsets, w, [&](std::int64_t first, std::int64_t e) {
    return Operands{expert(w, e), row(x, first), const_cast<void*>(row(y, first))};
  });
}

void Products::grouped_linear_dx(const Tensor& dy, std::span<const std::int64_t> offsets, const Tensor& w,
                                 const Tensor& dx) {
  impl_->run_experts(checked(Kind::dx, dy, dx, w, dx), offsets, w, [&](std::int64_t first, std::int64_t e) {
    return Operands{expert(w, e), row(dy, first), const_cast<void*>(row(dx, first))};
  });
}

void Products::grouped_linear_dw(const Tensor& dy, const Tensor& x, std::span<const std::int64_t> offsets,
                                 const Tensor& dw) {
  impl_->run_experts(checked(Kind::dw, dy, x, dw, dw), offsets, dw, [&](std::int64_t first, std::int64_t e) {
    return Operands{row(x, first), row(dy, first), expert(dw, e)};
  });
}

}  // namespace dropcycle::cuda
