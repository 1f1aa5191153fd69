#include "instruction_set.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "dropcycle/core/error.hpp"
#include "dropcycle/ops/ops.hpp"

namespace dropcycle {

bool has_native_bf16() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") != 0;  // every processor with AMX has it too
}

namespace cpu {
namespace {

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
         __builtin_cpu_supports("bmi2") != 0;
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
}

}  // namespace

InstructionSet instruction_set() {
  const char* value = std::getenv("DROPCYCLE_ISA");
  const std::string_view wish = value == nullptr ? "native" : value;
  if (wish == "native") return InstructionSet::native;
  if (wish == "baseline") return InstructionSet::baseline;
  const bool known = wish == "avx2" || wish == "avx512";
  if (!known || (wish == "avx2" && !has_avx2()) || (wish == "avx512" && !has_avx512())) {
    fail(Status::usage, "DROPCYCLE_ISA={}: {}: expected baseline, avx2, avx512 or native", wish,
         known ? "this processor lacks it" : "unknown");
  }
  return wish == "avx2" ? InstructionSet::avx2 : InstructionSet::avx512;
}

bool multiplies_bf16() { return instruction_set() == InstructionSet::native && has_native_bf16(); }

bool has_matrix_units() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAmxBf16 = 1U << 22;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBf16) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_avx512(InstructionSet set) {
  return set == InstructionSet::avx512 || (set == InstructionSet::native && has_avx512());
}

Kernels kernels_for(InstructionSet set) {
  if (set == InstructionSet::native && has_native_bf16()) return avx512bf16::kernels();
  if (has_avx512(set)) return avx512::kernels();
  if (set == InstructionSet::avx2 || (set == InstructionSet::native && has_avx2())) return avx2::kernels();
  return baseline::kernels();
}

Bf16Kernels bf16_kernels() {
  if (has_matrix_units()) {
    return {&amx::attention_bf16_scratch, &amx::attention_bf16, &amx::attention_bf16_backward,
            &amx::products_bf16_scratch,  &amx::products_bf16,  {kAmxTaskRows, 1024, 512, 2048}};
  }
  return {&avx512bf16::attention_bf16_scratch,  &avx512bf16::attention_bf16,
          &avx512bf16::attention_bf16_backward, &avx512bf16::products_bf16_scratch,
          &avx512bf16::products_bf16,           {kBf16TaskRows, 256, kBf16TaskOutputs, kBf16TaskInputs}};
}

}  // namespace cpu
}  // namespace dropcycle
