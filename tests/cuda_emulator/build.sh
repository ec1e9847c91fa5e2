#!/bin/sh
# Builds libraries that stand in for CUDA's driver, NVRTC, cuBLASLt and NCCL on a machine without a GPU, into a folder
# that LD_LIBRARY_PATH then names. Every call runs on the CPU before it returns. A mistake that a real GPU would punish
# or, worse, forgive aborts with a sentence. The environment:
#   EMULATED_CUDA_DEVICES     how many devices there are (1); with 0, cuInit finds none
#   EMULATED_CUDA_MEMORY      bytes of each device (4 GiB)
#   EMULATED_CUDA_CAPABILITY  the devices' compute capability (9.0)
#   EMULATED_CUDA_ORDER       forward, reverse or shuffled: how threads and blocks follow each other
#   EMULATED_CUDA_LOG         a file that gets a line for each launch, copy, allocation, ...
#   EMULATED_CUDA_CACHE       the folder of compiled kernels (OUT_DIR/compiled)
#   EMULATED_CUDA_REPLACE     OLD=>NEW: replaces text that the kernels' source has once, to test that a wrong
#                             kernel is noticed; such kernels are kept nowhere, so give WEFT_CACHE an empty folder too
set -eu
out=${1:?usage: build.sh OUT_DIR}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
# Libraries that were built from the same sources by the same compiler are left as they are.
sources=$(cat "$here"/* | cksum; ${CXX:-g++} --version)
if [ "$(cat "$out/sources" 2>/dev/null)" = "$sources" ]; then exit 0; fi
rm -f "$out/sources"
flags="-O2 -std=c++17 -Wall -Wextra -Werror -fPIC -shared -fvisibility=default"
build() { # LIBRARY SONAME SOURCES_AND_FLAGS...
    library=$1 soname=$2
    shift 2
    (cd "$here" && ${CXX:-g++} $flags -Wl,-soname,"$soname" "$@" -o "$out/$soname")
    ln -sf "$soname" "$out/$library"
}
out=$(cd "$out" && pwd)
for header in device fibers launch crash matrix driver; do cp "$here/$header.h" "$out"; done
build libnvrtc.so libnvrtc.so.13 nvrtc.cc translate.cc &
nvrtc=$!
build libcuda.so libcuda.so.1 driver.cc transfers.cc memory.cc modules.cc -ldl
build libcublasLt.so libcublasLt.so.13 cublaslt.cc gemm.cc -L"$out" -l:libcuda.so.1
build libnccl.so libnccl.so.2 nccl.cc peers.cc reduce.cc -L"$out" -l:libcuda.so.1 -pthread
wait $nvrtc
printf '%s\n' "$sources" >"$out/sources"
