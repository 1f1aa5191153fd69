# The CUDA toolkit (13), cuBLAS, cuDNN (9) and NCCL (2.28): what the cuda preset needs. Nothing here needs a GPU.
# CMake 3.25 doesn't know nvcc's option for C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_ARCHITECTURES 90a-real CACHE STRING "GPUs to compile for: 90a-real is the H100")
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
find_package(CUDAToolkit 13.0 REQUIRED)

# dropcycle_find_cuda(TARGET HEADER LIBRARY): a library without a package file of its own.
function(dropcycle_find_cuda target header library)
  find_path(${target}_INCLUDE_DIR ${header} HINTS ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
  find_library(${target}_LIBRARY ${library} HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
  add_library(${target} SHARED IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${${target}_LIBRARY}
                                             INTERFACE_INCLUDE_DIRECTORIES ${${target}_INCLUDE_DIR})
endfunction()
dropcycle_find_cuda(nccl nccl.h nccl)
dropcycle_find_cuda(cudnn cudnn.h cudnn)

# Host code of the backend: C++ that calls CUDA's libraries.
function(dropcycle_add_cuda_backend)
  add_library(dropcycle_cuda STATIC ${DROPCYCLE_CUDA_SOURCES})
  target_link_libraries(dropcycle_cuda PUBLIC CUDA::cudart PRIVATE CUDA::cublasLt CUDA::cublas cudnn nccl
                                                                   dropcycle_cuda_kernels)
endfunction()

# Kernels: ptxas's warnings (spills, local memory) are errors. Weights' bits are the processor's: no fused multiply-add
# where random.cu has none. fmt doesn't find out that nvcc knows constexpr.
file(GLOB cuda_kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cuda/kernels/*.cu)
add_library(dropcycle_cuda_kernels STATIC ${cuda_kernel_sources})
target_include_directories(dropcycle_cuda_kernels PUBLIC ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(dropcycle_cuda_kernels PUBLIC CUDA::cudart fmt::fmt INTERFACE dropcycle_device)
target_compile_definitions(dropcycle_cuda_kernels PRIVATE FMT_USE_CONSTEXPR=1)
target_compile_options(dropcycle_cuda_kernels PRIVATE -Xptxas=-warn-spills,-warn-lmem-usage,-Werror -Werror=all-warnings
                       --expt-relaxed-constexpr)
set_source_files_properties(${PROJECT_SOURCE_DIR}/src/ops/cuda/kernels/random.cu PROPERTIES COMPILE_OPTIONS -fmad=false)
