# TensorRT's or TensorRT-RTX's headers from TENSORRT_ROOT, and CUDA's headers and runtime from CUDAToolkit_ROOT (CMake or
# environment variables), or where CMake looks. Makes the target tensorrt::tensorrt, which links CUDA's runtime alone,
# the static one where there is one: TensorRT's own library is loaded when it is used. TensorRT_LIBRARY is where it is
# now, TensorRT_VERSION and TensorRT_TARGET ("tensorrt" or "tensorrt-rtx") are what the headers say.
set(tensorrt_roots ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT})
set(cuda_roots ${CUDAToolkit_ROOT} $ENV{CUDAToolkit_ROOT} $ENV{CUDA_PATH} /usr/local/cuda)
set(machine "${CMAKE_SYSTEM_PROCESSOR}-linux") # as CUDA's folders for cross compilers are called
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h
  HINTS ${tensorrt_roots} PATH_SUFFIXES include include/x86_64-linux-gnu include/aarch64-linux-gnu)
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h
  HINTS ${cuda_roots} PATH_SUFFIXES include targets/${machine}/include targets/sbsa-linux/include)
find_library(TensorRT_CUDA_LIBRARY NAMES cudart_static cudart NAMES_PER_DIR
  HINTS ${cuda_roots} PATH_SUFFIXES lib64 lib lib/x64 targets/${machine}/lib targets/sbsa-linux/lib)

if(TensorRT_INCLUDE_DIR)
  file(STRINGS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h" lines REGEX "^#define TRT_[A-Z]+_(RTX|ENTERPRISE) [0-9]+")
  set(TensorRT_TARGET "tensorrt")
  set(names nvinfer)
  if("${lines}" MATCHES "TRT_MAJOR_RTX")
    set(TensorRT_TARGET "tensorrt-rtx")
    set(names tensorrt_rtx)
  endif()
  foreach(part MAJOR MINOR)
    string(REGEX MATCH "TRT_${part}_[A-Z]+ +([0-9]+)" found "${lines}")
    set(TensorRT_${part} "${CMAKE_MATCH_1}")
  endforeach()
  set(TensorRT_VERSION "${TensorRT_MAJOR}.${TensorRT_MINOR}")
  list(APPEND names lib${names}.so.${TensorRT_MAJOR})
  find_library(TensorRT_LIBRARY NAMES ${names} NAMES_PER_DIR HINTS ${tensorrt_roots} PATH_SUFFIXES lib lib64)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR TensorRT_CUDA_LIBRARY
  VERSION_VAR TensorRT_VERSION
  REASON_FAILURE_MESSAGE "set TENSORRT_ROOT to the folder of TensorRT or TensorRT-RTX, and CUDAToolkit_ROOT to CUDA's")

if(TensorRT_FOUND AND NOT TARGET tensorrt::tensorrt)
  add_library(tensorrt::tensorrt UNKNOWN IMPORTED)
  find_package(Threads REQUIRED)
  set(system ${CMAKE_DL_LIBS} Threads::Threads)
  if(UNIX AND NOT APPLE)
    list(APPEND system rt)
  endif()
  set_target_properties(tensorrt::tensorrt PROPERTIES
    IMPORTED_LOCATION "${TensorRT_CUDA_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${system}")
endif()
