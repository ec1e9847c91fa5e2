"""Step a: the driver, the GPUs and the libraries that `weft` finds, and how long the kernels take to compile."""
import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from .step import ROOT

LIBRARIES = ("libcuda", "libnvrtc", "libcublasLt")
COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute's numbers of its major and minor part
GPU_FIELDS = "name,driver_version,memory.total,clocks.max.sm"


def call(function, *arguments):
    if status := function(*arguments):
        raise OSError(f"{function.__name__} returned {status}")


def gpus():
    """The GPUs that the driver shows: name, bytes, compute capability; and the CUDA version of the driver."""
    cuda = ctypes.CDLL("libcuda.so.1")
    call(cuda.cuInit, 0)
    number, found = ctypes.c_int(), []
    call(cuda.cuDriverGetVersion, ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    call(cuda.cuDeviceGetCount, ctypes.byref(number))
    for i in range(number.value):
        device, name, size, part = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_size_t(), ctypes.c_int()
        call(cuda.cuDeviceGet, ctypes.byref(device), i)
        call(cuda.cuDeviceGetName, name, len(name), device)
        call(cuda.cuDeviceTotalMem_v2, ctypes.byref(size), device)
        capability = []
        for attribute in COMPUTE_CAPABILITY:
            call(cuda.cuDeviceGetAttribute, ctypes.byref(part), attribute, device)
            capability.append(str(part.value))
        found.append({"name": name.value.decode(), "bytes": size.value, "capability": ".".join(capability)})
    return found, version


def opened_libraries(log):
    """The paths of NVIDIA's libraries in the loader's log (LD_DEBUG=files)."""
    paths = re.findall(r"calling init: (\S+)", log)
    return {stem: path for stem in LIBRARIES for path in paths if Path(path).name.startswith(stem + ".so")}


def version_of(stem, path):
    """A library's version as it tells it; the file's name where it tells none."""
    library, parts = ctypes.CDLL(path), (ctypes.c_int(), ctypes.c_int())
    if stem == "libnvrtc" and not library.nvrtcVersion(*map(ctypes.byref, parts)):
        return ".".join(str(part.value) for part in parts)
    if stem == "libcublasLt" and hasattr(library, "cublasLtGetVersion"):
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        number = library.cublasLtGetVersion()
        return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"
    return Path(path).name


def first_starts(step):
    """A comparison of the smallest golden twice: the libraries that it opens, and the two starts' seconds."""
    golden, loader = ROOT / "tests/golden/llada", step.work / "loader"
    asked = ["parity", "--device", "cuda", "--model", golden, "--adapter", golden / "lora/adapter", "--json"]
    asked += ["--reference", golden / "lora/objectives.safetensors"]
    first = step.weft(*asked, LD_DEBUG="files", LD_DEBUG_OUTPUT=str(loader))
    again = step.weft(*asked)
    log = "".join(path.read_text(errors="replace") for path in step.work.glob("loader.*"))
    for done in (first, again):
        if done.status not in (0, 1):  # wrong numbers are step c's to tell
            step.fail(done.problem("weft parity"))
    return opened_libraries(log), first.seconds, again.seconds


def check_glibc(step):
    """What the binaries need beside what is here."""
    manifest = step.binaries / "manifest.json"
    needed = json.loads(manifest.read_text()).get("glibc", "0") if manifest.exists() else "0"
    here = platform.libc_ver()[1] or "0"
    numbers = [[int(part) for part in version.split(".")] for version in (here, needed)]
    if numbers[0] < numbers[1]:
        step.fail(f"the binaries need glibc {needed}, and this machine has {here}")
    step.details(glibc=here, python=platform.python_version(), cores=os.cpu_count())


def run(step):
    check_glibc(step)
    found, version = gpus()
    names = [gpu["name"] for gpu in found]
    step.details(gpu=names[0] if names else None, gpus=found, cuda_of_driver=version)
    if not found:
        return step.fail("the driver shows no GPU")
    driver = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
        driver = lines[0].split(", ")[1] if lines and ", " in lines[0] else ""
        step.details(nvidia_smi=lines, driver=driver)
    libraries, first, again = first_starts(step)
    versions = {stem: version_of(stem, path) for stem, path in libraries.items()}
    step.details(libraries=versions, first_start_seconds=first, second_start_seconds=again)
    for missing in [stem for stem in LIBRARIES if stem not in libraries]:
        step.fail(f"{missing} was not opened")
    for line in [f"driver {driver or '?'}, CUDA {version}", *names, *libraries.values()]:
        print(line)
    gpu = found[0]
    what = f"{len(found)} x {gpu['name']}, {gpu['bytes'] / 1e9:.1f} GB, compute capability {gpu['capability']}"
    step.figure(f"{what}; driver {driver or '?'} (CUDA {version})", f"kernels compiled in {max(first - again, 0):.1f} s")
