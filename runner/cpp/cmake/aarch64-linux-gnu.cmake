# Compiles for 64-bit Arm under Linux with Debian's cross compiler (g++-aarch64-linux-gnu):
#   python runner/cpp/prepare_onnxruntime.py --machine aarch64 --output onnxruntime-aarch64
#   cmake -S runner/cpp -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=$PWD/runner/cpp/cmake/aarch64-linux-gnu.cmake \
#     -DONNXRUNTIME_ROOT=$PWD/onnxruntime-aarch64
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
# programs run here; libraries and headers are the other machine's, but for what is named (ONNXRUNTIME_ROOT)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)
