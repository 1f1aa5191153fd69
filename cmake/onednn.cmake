# oneDNN: the copy that tools/setup puts into .deps/onednn (3.2) if it is there, else the system's (2.6 or newer).
find_path(ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp
          HINTS ${PROJECT_SOURCE_DIR}/.deps/onednn/include ${ONEDNN_ROOT}/include)
find_library(ONEDNN_LIBRARY dnnl HINTS ${PROJECT_SOURCE_DIR}/.deps/onednn/lib ${ONEDNN_ROOT}/lib)
if(NOT ONEDNN_INCLUDE_DIR OR NOT ONEDNN_LIBRARY)
  message(FATAL_ERROR "oneDNN not found: run tools/setup, or pass -DONEDNN_ROOT=<prefix> of an installed oneDNN >= 2.6")
endif()
add_library(onednn UNKNOWN IMPORTED)
set_target_properties(onednn PROPERTIES IMPORTED_LOCATION ${ONEDNN_LIBRARY}
                                        INTERFACE_INCLUDE_DIRECTORIES ${ONEDNN_INCLUDE_DIR})
