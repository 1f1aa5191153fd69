# The CUDA backend's own kernels compiled for the processor (tests/cuda/emulation): needs the toolkit's headers only.
find_path(DROPCYCLE_CUDA_HEADERS cuda_bf16.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV CUDA_PATH
          PATHS /usr/local/cuda PATH_SUFFIXES include)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  set(DROPCYCLE_CUDA_EMULATION ${DROPCYCLE_CUDA_HEADERS})
endif()

# dropcycle_emulated_kernels(TARGET [SANITIZER address|thread] [COUNTED]): every kernel, and the fibers that run them. The
# fibers' own code isn't instrumented: it tells the sanitizer which stack is in use. COUNTED: kernels say what memory they
# touch (tests/cuda/stand_in/traffic.cpp). Property SANITIZER_FLAGS: for other kernels that are to be instrumented.
function(dropcycle_emulated_kernels target)
  cmake_parse_arguments(arg "COUNTED" "SANITIZER" "" ${ARGN})
  add_library(${target}_fibers OBJECT ${PROJECT_SOURCE_DIR}/tests/cuda/emulation/emulation.cpp)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cuda/kernels/*.cu)
  set_source_files_properties(${sources} PROPERTIES LANGUAGE CXX)
  set_source_files_properties(${PROJECT_SOURCE_DIR}/src/ops/cuda/kernels/random.cu PROPERTIES COMPILE_OPTIONS
                              -ffp-contract=off)
  add_library(${target} STATIC ${sources} $<TARGET_OBJECTS:${target}_fibers>)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
  set_target_properties(${target}_fibers PROPERTIES UNITY_BUILD OFF)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR}/tests/cuda/emulation)
  target_include_directories(${target} SYSTEM PUBLIC ${DROPCYCLE_CUDA_HEADERS})
  target_include_directories(${target}_fibers SYSTEM PRIVATE ${DROPCYCLE_CUDA_HEADERS})
  target_link_libraries(${target} PUBLIC dropcycle_core)
  target_link_libraries(${target}_fibers PRIVATE dropcycle_options)
  target_compile_definitions(${target} PUBLIC DROPCYCLE_EMULATED)
  # As GPUs read memory: 16 bytes of any type. Pragmas are nvcc's.
  target_compile_options(${target} PRIVATE -fno-strict-aliasing -Wno-unknown-pragmas)
  if(arg_SANITIZER STREQUAL "address")
    set(flags -g1 -O1 -fsanitize=address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero
              -fno-sanitize-recover=all)
    target_compile_definitions(${target}_fibers PRIVATE EMULATION_ADDRESS_SANITIZER)
  elseif(arg_SANITIZER STREQUAL "thread")
    set(flags -g1 -O1 -fsanitize=thread)
    target_compile_definitions(${target}_fibers PRIVATE EMULATION_THREAD_SANITIZER)
  endif()
  if(arg_COUNTED)
    target_compile_options(${target} PRIVATE -fsanitize=kernel-address "SHELL:--param asan-instrumentation-with-call-threshold=0"
                                             "SHELL:--param asan-stack=0" "SHELL:--param asan-globals=0")
  endif()
  target_compile_options(${target} PRIVATE ${flags})
  set_target_properties(${target} PROPERTIES SANITIZER_FLAGS "${flags}")
  target_link_options(${target} PUBLIC ${flags})
endfunction()
