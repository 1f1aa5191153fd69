// Which instructions are used, asked of the processor at run time. The environment variable DROPCYCLE_ISA lowers the
// choice for tests and comparisons, before the first product: baseline (SSE2), avx2 (with FMA), avx512 (without BF16)
// or native (the default: everything that the processor has, AVX-512 BF16 and AMX too).
#pragma once

#include "kernels/kernels.hpp"

namespace dropcycle::cpu {

enum class InstructionSet : std::uint8_t { baseline, avx2, avx512, native };

// Throws Error{usage} where DROPCYCLE_ISA is unknown or names what the processor lacks.
InstructionSet instruction_set();
// Whether bf16 products run natively with the set above.
bool multiplies_bf16();
// Whether this processor has AMX for bf16 and the system lets this process use it.
bool has_matrix_units();
// Whether `set` has AVX-512 on this processor.
bool has_avx512(InstructionSet set);
Kernels kernels_for(InstructionSet set);
// For processors that multiply bf16: by matrix units where there are any, else by vectors.
Bf16Kernels bf16_kernels();

}  // namespace dropcycle::cpu
