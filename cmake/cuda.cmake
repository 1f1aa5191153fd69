# The CUDA toolkit (13), cuBLAS, cuDNN (9) and NCCL (2.28): what the cuda preset needs. Nothing here needs a GPU.
find_program(DROPCYCLE_NVCC nvcc HINTS $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
get_filename_component(cuda_prefix "${DROPCYCLE_NVCC}" REALPATH)
get_filename_component(cuda_prefix "${cuda_prefix}/../.." ABSOLUTE)
foreach(library nccl cudnn)
  find_path(DROPCYCLE_${library}_INCLUDE_DIR ${library}.h HINTS ${cuda_prefix}/include /usr/local/cuda/include)
  find_library(DROPCYCLE_${library}_LIBRARY ${library} HINTS ${cuda_prefix}/lib64 /usr/local/cuda/lib64)
endforeach()
if(DROPCYCLE_NVCC AND DROPCYCLE_nccl_INCLUDE_DIR AND DROPCYCLE_nccl_LIBRARY AND DROPCYCLE_cudnn_INCLUDE_DIR
   AND DROPCYCLE_cudnn_LIBRARY)
  set(DROPCYCLE_CUDA_TOOLKIT ON)
elseif(DROPCYCLE_CUDA)
  message(FATAL_ERROR "the CUDA backend needs nvcc, NCCL and cuDNN: nvcc is ${DROPCYCLE_NVCC}, NCCL "
                      "${DROPCYCLE_nccl_LIBRARY}, cuDNN ${DROPCYCLE_cudnn_LIBRARY}: install them, or set CUDA_PATH")
else()
  return()
endif()
# CMake 3.25 doesn't know nvcc's option for C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_ARCHITECTURES 90a-real CACHE STRING "GPUs to compile for: 90a-real is the H100")
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
set(CMAKE_CUDA_COMPILER ${DROPCYCLE_NVCC} CACHE FILEPATH "nvcc")
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
find_package(CUDAToolkit 13.0 REQUIRED)

foreach(library nccl cudnn)
  add_library(${library} SHARED IMPORTED GLOBAL)
  set_target_properties(${library} PROPERTIES IMPORTED_LOCATION ${DROPCYCLE_${library}_LIBRARY}
                                              INTERFACE_INCLUDE_DIRECTORIES ${DROPCYCLE_${library}_INCLUDE_DIR})
endforeach()
set(DROPCYCLE_CUDA_LIBRARIES CUDA::cublasLt CUDA::cublas cudnn nccl dropcycle_cuda_kernels CUDA::cudart)

# Host code of the backend: C++ that calls CUDA's libraries.
function(dropcycle_add_cuda_backend)
  add_library(dropcycle_cuda STATIC ${DROPCYCLE_CUDA_SOURCES})
  target_link_libraries(dropcycle_cuda PUBLIC ${DROPCYCLE_CUDA_LIBRARIES})
endfunction()

# Kernels: ptxas's warnings (spills, local memory) are errors. They are compiled in two pieces, for two processors: nvcc
# takes longer over the headers than over a kernel. random.cu is apart: weights' bits are the processor's, without fused
# multiply-add where it has none. fmt doesn't find out that nvcc knows constexpr.
set(DROPCYCLE_NVCC_FLAGS -Xptxas=-warn-spills,-warn-lmem-usage,-Werror -Werror=all-warnings --expt-relaxed-constexpr
                         -DFMT_USE_CONSTEXPR=1)
file(GLOB cuda_kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cuda/kernels/*.cu)
set(random_kernels ${PROJECT_SOURCE_DIR}/src/ops/cuda/kernels/random.cu)
list(REMOVE_ITEM cuda_kernel_sources ${random_kernels})
foreach(source ${cuda_kernel_sources})
  string(APPEND piece_0 "#include \"${source}\"\n")
  string(CONCAT swapped "${piece_1}")  # the next goes to the other piece
  set(piece_1 "${piece_0}")
  set(piece_0 "${swapped}")
endforeach()
foreach(piece 0 1)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/cuda_kernels_${piece}.cu CONTENT "${piece_${piece}}" @ONLY)
endforeach()
add_library(dropcycle_cuda_kernels STATIC ${PROJECT_BINARY_DIR}/cuda_kernels_0.cu
                                          ${PROJECT_BINARY_DIR}/cuda_kernels_1.cu ${random_kernels})
target_include_directories(dropcycle_cuda_kernels PUBLIC ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(dropcycle_cuda_kernels PUBLIC CUDA::cudart fmt::fmt INTERFACE dropcycle_device)
target_compile_options(dropcycle_cuda_kernels PRIVATE ${DROPCYCLE_NVCC_FLAGS})
set_source_files_properties(${random_kernels} PROPERTIES COMPILE_OPTIONS -fmad=false)
