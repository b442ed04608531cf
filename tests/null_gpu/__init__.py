"""A GPU that computes nothing, for the host's side of the CUDA path: what it launches, copies, allocates and waits for.

It stands in for the CUDA runtime, the driver and cuBLAS under torch's CUDA build, in processes of its own (`LD_PRELOAD`), which
need no GPU; `mathematics.py`, which these import at their start, does for cuDNN and cuSOLVER. It has no values, races between
streams or times: kernels, recorded ones too, are counted and not run, and all that the host reads of its memory is zero (or yes).

Triton compiles for it as for an H100, by the ptxas that it brings along. It looks for the driver in the list of the system's
libraries, unless TRITON_LIBCUDA_PATH names a folder, and links a module with it, whose functions are then the preloaded ones.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

HERE = Path(__file__).parent
PACKAGES = Path(sysconfig.get_path("purelib"))
HEADERS = ("cuda_runtime_api.h", "crt/host_defines.h")
PATTERNS = ("nvidia/cu*/include", "triton/backends/nvidia/include")
"""Triton's may be of another version than torch's, and have what those lack."""
INCLUDES = [folder for pattern in PATTERNS for folder in PACKAGES.glob(pattern)]
LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")
TRITON = PACKAGES / "triton/backends/nvidia/driver.c"
"""Source that is compiled when it is needed: what it calls is read there."""
REAL = r"__cuda(Register|Unregister|Push|Pop|Init)|cudaGetError(String|Name)"
"""What needs no device is left to NVIDIA's own library."""
PRODUCT = r"cublas.*(gemm|gemv|Gemm|Matmul$|dot)"


def missing() -> str | None:
    """Why it cannot be built here."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if not all(any((folder / name).is_file() for folder in INCLUDES) for name in HEADERS):
        return "the headers of the CUDA runtime are not installed"
    tools = [tool for tool in ("g++", "nm") if shutil.which(tool) is None]
    return f"{' and '.join(tools)} missing" if tools else None


def build(folder: Path) -> Path:
    """The library, in a few seconds; beside it what a Python that has the folder on its path imports at its start."""
    source = (HERE / "device.cpp").read_text()
    written = set(re.findall(r"^\w+ (\w+)\(", source, re.MULTILINE))
    generated = ['extern "C" {', "void null_gpu_product();"]
    for name in sorted((_called_by_torch() | _called_by_triton()) - written):
        counted = "null_gpu_product(); " if re.search(PRODUCT, name) else ""
        generated.append(f"int {name}() {{ {counted}return 0; }}")
    (folder / "rest.cpp").write_text("\n".join([*generated, "}"]) + "\n")
    (folder / "sitecustomize.py").write_text("import null_gpu.mathematics\n")
    library = folder / "libcuda.so.1"  # the driver's name, so that torch finds one
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1"]
    command += [f"-I{folder}" for folder in INCLUDES]
    subprocess.run([*command, HERE / "device.cpp", folder / "rest.cpp", "-o", library], check=True)
    return library


def _called_by_torch() -> set[str]:
    names: set[str] = set()
    for library in LIBRARIES:
        path = Path(torch.__file__).parent / "lib" / library
        listed = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True)
        names |= set(re.findall(r" U ((?:__cuda|cuda|cublas|cu[A-Z])\w+)", listed.stdout))
    return {name for name in names if not re.match(REAL, name)}


def _called_by_triton() -> set[str]:
    return set(re.findall(r"\b(cu[A-Z]\w+)\(", TRITON.read_text())) if TRITON.is_file() else set()


def environment(library: Path) -> dict[str, str]:
    """Of a process, and those that it starts, for which it is the only GPU."""
    paths = [library.parent, HERE.parent, HERE.parent.parent, os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(map(str, paths))}
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    variables["TRITON_LIBCUDA_PATH"] = str(library.parent)
    # One variant of each kernel: trials of several would show nothing here.
    return variables | {"TORCHINDUCTOR_DETERMINISTIC": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def python(library: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where that GPU is the only one."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment(library), capture_output=True, text=True, check=False)
