// Mistakes that the stand-in for CUDA's libraries must find: `stand_in_probe MISTAKE`. Without a mistake (`none`) all
// is well; the last line says "done".
#include <cublasLt.h>
#include <mpi.h>
#include <nccl.h>

#include <cstdio>
#include <cstring>
#include <string_view>
#include <vector>

#include "dropcycle/device/arena.hpp"
#include "dropcycle/device/cuda.hpp"
#include "dropcycle/parallel/communicator.hpp"

using namespace dropcycle;

namespace {

int rank = 0;
std::string_view mistake;
bool makes(std::string_view name) { return mistake == name; }

Device& gpu() { return cuda_device(rank); }
cudaStream_t stream() { return as_cuda(gpu()).stream(); }

OwnedTensor uploaded(float value, std::int64_t count = 1000) {
  const std::vector<float> values(static_cast<std::size_t>(count), value);
  OwnedTensor x(DType::f32, {count}, gpu());
  gpu().upload(x.view().data, values.data(), x.view().bytes());
  return x;
}

// Copies on a stream of its own that must wait for the upload, 40 times. How often the old values were copied.
int stale_copies() {
  const CudaStream other;
  const OwnedTensor y = uploaded(0);
  int stale = 0;
  for (int turn = 1; turn <= 40; ++turn) {
    const OwnedTensor x = uploaded(static_cast<float>(turn));
    CudaEvent written, copied;
    written.record(stream());
    if (!makes("missing wait")) written.make_wait(other.get());
    check_cuda(cudaMemcpyAsync(y.view().data, x.view().data, 4000, cudaMemcpyDeviceToDevice, other.get()), "copy");
    copied.record(other.get());
    copied.make_wait(stream());
    if (!(HostCopy(gpu(), y).view().as<float>()[500] == static_cast<float>(turn))) ++stale;
  }
  return stale;
}

void touch_memory() {
  OwnedTensor x = uploaded(1), y = uploaded(2);
  auto* const values = x.view().as<float>();
  if (makes("host read")) std::printf("%f\n", static_cast<double>(*values));
  if (makes("host write")) *values = 1;
  if (makes("pageable memory")) {
    std::vector<float> host(1000);
    check_cuda(cudaMemcpyAsync(values, host.data(), 4000, cudaMemcpyHostToDevice, stream()), "copy");
  }
  if (makes("copy too long")) gpu().copy(values, y.view().data, 5000);
  if (makes("overlapping copy")) gpu().copy(values, values + 10, 1000);
  if (makes("freed memory")) {
    x = OwnedTensor();
    gpu().copy(y.view().data, values, 4000);
  }
  if (makes("freed while another stream reads")) {
    const CudaStream other;
    for (int turn = 0; turn < 20; ++turn) {
      const OwnedTensor z = uploaded(3);
      gpu().synchronize();
      check_cuda(cudaMemcpyAsync(y.view().data, z.view().data, 4000, cudaMemcpyDeviceToDevice, other.get()), "copy");
    }
  }
  if (makes("freed twice")) gpu().release(values);
  if (makes("leak")) new OwnedTensor(DType::f32, {77}, gpu());
  if (makes("event never recorded")) CudaEvent().make_wait(stream());
  if (makes("pinned memory read too early")) {
    void* pinned = nullptr;
    check_cuda(cudaMallocHost(&pinned, 4000), "cudaMallocHost");
    check_cuda(cudaMemcpyAsync(pinned, y.view().data, 4000, cudaMemcpyDeviceToHost, stream()), "copy");
    if (!(*static_cast<float*>(pinned) == 2)) std::printf("CUDA stand-in: poison\n");
    check_cuda(cudaFreeHost(pinned), "cudaFreeHost");
  }
  gpu().synchronize();
}

// c[8,8] = a[16,8]' b[16,8], as cuBLASLt's own matrices.
void multiply() {
  const OwnedTensor a = uploaded(1), b = uploaded(2), c = uploaded(0), workspace = uploaded(0, 4096);
  cublasLtHandle_t handle = nullptr;
  cublasLtCreate(&handle);
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const cublasOperation_t transposed = makes("wrong transpose") ? CUBLAS_OP_N : CUBLAS_OP_T;
  cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
  cublasLtMatrixLayout_t la = nullptr, lb = nullptr, lc = nullptr;
  cublasLtMatrixLayoutCreate(&la, CUDA_R_32F, 16, 8, makes("wrong leading dimension") ? 8 : 16);
  cublasLtMatrixLayoutCreate(&lb, CUDA_R_32F, 16, 8, makes("leading dimension beyond the memory") ? 1600 : 16);
  cublasLtMatrixLayoutCreate(&lc, CUDA_R_32F, 8, 8, 8);
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulPreferenceCreate(&preference);
  const std::uint64_t most = 1 << 14;
  const std::uint32_t alignment = 16;
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    cublasLtMatmulPreferenceSetAttribute(preference, attribute, &alignment, sizeof alignment);
  }
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  cublasLtMatmulAlgoGetHeuristic(handle, product, la, lb, lc, lc, preference, 1, &found, &count);
  const float one = 1, zero = 0;
  const float* const from = a.view().as<float>() + (makes("misaligned operand") ? 1 : 0);
  void* const to = makes("result over an operand") ? b.view().data : c.view().data;
  cublasLtMatmul(handle, product, &one, from, la, b.view().data, lb, &zero, to, lc, to, lc, &found.algo,
                 workspace.view().data, makes("small workspace") ? 1 << 10 : 1 << 14, stream());
  gpu().synchronize();
  const HostCopy host(gpu(), c);
  if (!(host.view().as<float>()[63] == 32)) std::printf("a wrong product\n");
  for (cublasLtMatrixLayout_t layout : {la, lb, lc}) cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatmulDescDestroy(product);
  cublasLtDestroy(handle);
}

void communicate() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  ncclUniqueId id{};
  if (rank == 0) ncclGetUniqueId(&id);
  MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
  ncclComm_t comm = nullptr;
  ncclCommInitRankConfig(&comm, size, id, rank, nullptr);
  const bool differs = rank == 1;
  {
    const OwnedTensor x = uploaded(1), y = uploaded(2);
    void *const a = x.view().data, *const b = y.view().data;
    const std::size_t count = differs && makes("wrong count on a rank") ? 999 : 1000;
    const bool swapped = differs && makes("another order on a rank");
    if (swapped) ncclBroadcast(b, b, 1000, ncclFloat32, 0, comm, stream());
    ncclAllReduce(a, a, count, differs && makes("wrong type on a rank") ? ncclInt32 : ncclFloat32, ncclSum, comm,
                  stream());
    if (!swapped)
      ncclBroadcast(b, b, 1000, ncclFloat32, differs && makes("wrong root on a rank") ? 1 : 0, comm, stream());
    if (makes("overlapping buffers"))
      ncclAllReduce(a, static_cast<char*>(a) + 4, 10, ncclFloat32, ncclSum, comm, stream());
    const std::size_t bytes = differs && makes("wrong size of a message") ? 20 : 40;
    ncclGroupStart();
    ncclSend(a, 40, ncclUint8, 1 - rank, comm, stream());
    ncclRecv(b, bytes, ncclUint8, 1 - rank, comm, stream());
    ncclGroupEnd();
    gpu().synchronize();
    if (!(HostCopy(gpu(), y).view().as<float>()[9] == 2)) std::printf("a wrong sum\n");
  }
  ncclComm_t second = nullptr;
  ncclCommSplit(comm, 0, rank, &second, nullptr);
  {
    const OwnedTensor x = uploaded(1), y = uploaded(2);
    const CudaStream other;
    CudaEvent uploads;
    uploads.record(stream());
    uploads.make_wait(other.get());
    const auto sum = [](const OwnedTensor& z, ncclComm_t of, cudaStream_t on) {
      ncclAllReduce(z.view().data, z.view().data, 1000, ncclFloat32, ncclSum, of, on);
    };
    const bool swapped = differs && makes("another order of communicators on a rank");
    if (swapped) sum(y, second, other.get());
    sum(x, comm, stream());
    if (!swapped) sum(y, second, other.get());
    uploads.record(other.get());
    uploads.make_wait(stream());
    gpu().synchronize();
  }
  ncclCommDestroy(second);
  ncclCommDestroy(comm);
}

}  // namespace

int main(int argc, char** argv) {
  mistake = argc > 1 ? argv[1] : "none";
  const bool alone = argc > 2 && std::strcmp(argv[2], "alone") == 0;
  if (!alone) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  }
  if (alone) {
    if (const int stale = stale_copies(); stale > 0) std::printf("CUDA stand-in: %d stale copies\n", stale);
    touch_memory();
    multiply();
  } else {
    communicate();
    MPI_Finalize();
  }
  std::printf("done\n");
}
