// cuDNN's plans for our graphs on an H100 that isn't there: that they can be built, from which kernels, and with how
// much workspace. A stand-in for the driver's library remembers the kernels' names.
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <string>

#include "../../src/ops/cuda/attention.hpp"
#include "../../src/ops/cuda/attention_plan.hpp"

using namespace dropcycle;
using namespace dropcycle::cuda;

namespace {

// Measured on an H100 SXM by cudaGetDeviceProperties, in the form of cuDNN's JSON representation.
constexpr const char* kH100 =
    R"({"deviceVer":900,"multiProcessorCount":132,"warpSize":32,"maxSharedMemoryPerBlock":49152,)"
    R"("maxSharedMemoryPerBlockOptin":232448,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,)"
    R"("maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"regsPerBlock":65536,)"
    R"("totalGlobalMem":84942979072,"smClockRateKHz":1980000,"l2CacheSize":52428800,"maxBlockSize":[1024,1024,64],)"
    R"("memClockRateKHz":2619000,"maxGridSize":[2147483647,65535,65535],"supportCoopLaunch":1,"pciDeviceId":0,)"
    R"("isTccDriver":0,"cudaDeviceId":0,"driverVer":13000,"deviceName":"NVIDIA H100 80GB HBM3"})";

// The kernels asked for since the last call.
std::string kernels() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  REQUIRE(library != nullptr);
  void* names = dlsym(library, "stand_in_kernels");
  REQUIRE(names != nullptr);
  return reinterpret_cast<const char* (*)()>(names)();
}

const CudnnDescriptor& h100() {
  static const CudnnDescriptor properties = device_properties(kH100);
  return properties;
}

AttentionGraphOptions packed(const AttentionShape& s, bool documents, bool deterministic) {
  const std::int64_t width = s.qkv_width(), out_width = s.heads * s.head_size;
  AttentionGraphOptions o;
  o.shape = s;
  o.q = o.k = o.v = o.dq = o.dk = o.dv = {s.sequence * width, s.head_size, width};
  o.out = o.dout = {s.sequence * out_width, s.head_size, out_width};
  o.lse = {s.sequence * s.heads, 1, s.heads};
  o.documents = documents;
  o.deterministic = deterministic;
  return o;
}

double numbers(const AttentionShape& s) { return static_cast<double>(s.tokens() * s.heads * s.head_size); }

void check_forward(const AttentionShape& s, bool documents) {
  kernels();
  const CudnnPlan plan(attention_forward_graph(packed(s, documents, false)).graph, h100(), false);
  CHECK(doctest::String(kernels().c_str()) == doctest::Contains("sdpa_sm90_flash_fprop_wgmma_f16"));
  CHECK(plan.workspace_bytes() <= 4096);
}

// The part of `whole` that one call takes.
void check_backward(const AttentionShape& whole, bool documents, bool deterministic) {
  const AttentionPart part = attention_part(whole, deterministic);
  REQUIRE(part.kv_heads > 0);
  AttentionGraphOptions o = packed(whole, documents, deterministic);
  o.shape.batch = part.sequences;
  o.shape.heads = part.kv_heads * (whole.heads / whole.kv_heads);
  o.shape.kv_heads = part.kv_heads;
  kernels();
  const AttentionGraph graph = attention_backward_graph(o);
  const CudnnPlan plan(graph.graph, h100(), deterministic);
  CHECK(doctest::String(kernels().c_str()) == doctest::Contains("sdpa_sm90_flash_bprop_wgmma_f16"));
  CHECK((graph.dq_sum < 0) == deterministic);
  const auto s = static_cast<double>((whole.sequence + 127) / 128 * 128);  // in whole tiles
  const double scores = 2 * static_cast<double>(part.sequences * o.shape.heads) * s * s;
  const double own = static_cast<double>(plan.workspace_bytes()), expected = 4 * numbers(o.shape);
  // What attention_part() counts with, and a few hundred bytes.
  CHECK(own <= (deterministic ? scores : 0) + expected + 4096);
  CHECK(own + (deterministic ? 0 : expected) <= kMostWorkspaceBytes + 4096);
}

struct Heads {
  std::int64_t heads, kv_heads;
};

void check_all(std::int64_t head_size, Heads heads, std::int64_t sequence) {
  INFO("D ", head_size, " heads ", heads.heads, "/", heads.kv_heads, " S ", sequence);
  const AttentionShape s{1, sequence, heads.heads, heads.kv_heads, head_size};
  check_forward(s, false);
  check_backward(s, false, false);
  if (attention_part(s, true).kv_heads > 0) check_backward(s, false, true);
}

}  // namespace

TEST_CASE("H100: grouped heads of 128, 4,096 tokens") {
  check_all(128, {32, 8}, 4096);
  check_forward({2, 4096, 32, 8, 128}, true);
  check_backward({2, 4096, 32, 8, 128}, true, true);
}

TEST_CASE("H100, all: head sizes, grouped and not, 4,096 and 32,768 tokens, documents, odd sizes") {
  for (const std::int64_t head_size : {64, 128}) {
    for (const Heads heads : {Heads{32, 32}, Heads{32, 8}}) {
      for (const std::int64_t sequence : {4096, 32768}) check_all(head_size, heads, sequence);
    }
    check_forward({2, 32768, 32, 8, head_size}, true);
    check_backward({2, 32768, 32, 32, head_size}, true, true);
  }
  check_forward({3, 77, 4, 2, 40}, true);
  check_backward({3, 77, 4, 2, 40}, true, true);
  check_backward({1, 1, 2, 1, 8}, false, true);
}

TEST_CASE("a deterministic backward pass keeps within the workspace or isn't taken") {
  CHECK(attention_part({2, 4096, 32, 8, 128}, true) == AttentionPart{2, 8});
  CHECK(attention_part({8, 4096, 32, 8, 128}, true) == AttentionPart{2, 8});
  CHECK(attention_part({3, 4096, 32, 8, 128}, true) == AttentionPart{1, 8});
  CHECK(attention_part({2, 32768, 32, 32, 128}, true) == AttentionPart{1, 1});
  CHECK(attention_part({2, 32768, 32, 8, 128}, true).kv_heads == 0);
  CHECK(attention_part({2, 32768, 32, 8, 128}, false) == AttentionPart{2, 8});
}

// What the engines don't take must be an error with cuDNN's words.
TEST_CASE("a graph without a plan is refused") {
  const AttentionGraph graph = attention_forward_graph(packed({1, 4096, 4, 4, 20}, false, false));
  CHECK_THROWS_WITH_AS(CudnnPlan(graph.graph, h100(), false), doctest::Contains("cuDNN has no plan"), Error);
}
