# Every kernel is compiled once per instruction set; which table is used is decided at run time (instruction_set.hpp).
# x86-64 has a fixed ABI for floats in memory, so the objects mix freely; each lives in its own namespace.
file(GLOB kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cpu/kernels/*.cpp)
file(GLOB bf16_kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cpu/kernels_bf16/*.cpp)
set(DROPCYCLE_KERNEL_OBJECTS "")
# dropcycle_kernels(NAMESPACE SOURCES compiler options...)
function(dropcycle_kernels isa sources)
  add_library(dropcycle_kernels_${isa} OBJECT ${${sources}})
  target_compile_definitions(dropcycle_kernels_${isa} PRIVATE DROPCYCLE_ISA=${isa})
  target_compile_options(dropcycle_kernels_${isa} PRIVATE -O3 -ffp-contract=fast -fno-trapping-math ${ARGN})
  target_link_libraries(dropcycle_kernels_${isa} PRIVATE dropcycle_options OpenMP::OpenMP_CXX)
endfunction()
set(avx2_options -mavx2 -mfma -mbmi2)
# GCC 12 warns about what its own AVX-512 intrinsics leave undefined.
set(avx512_options ${avx2_options} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512
                   -Wno-maybe-uninitialized -Wno-uninitialized)
dropcycle_kernels(baseline kernel_sources)
dropcycle_kernels(avx2 kernel_sources ${avx2_options})
dropcycle_kernels(avx512 kernel_sources ${avx512_options})
list(APPEND bf16_kernel_sources ${kernel_sources})
dropcycle_kernels(avx512bf16 bf16_kernel_sources ${avx512_options} -mavx512bf16)
foreach(isa baseline avx2 avx512 avx512bf16)
  list(APPEND DROPCYCLE_KERNEL_OBJECTS $<TARGET_OBJECTS:dropcycle_kernels_${isa}>)
endforeach()
