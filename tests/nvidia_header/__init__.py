"""NVIDIA's emulation of its conversion instructions, from the headers of the CUDA toolkit, as functions on arrays.

`PYTHONPATH=tests python -m nvidia_header` rewrites `triton_kernels/boundaries.json` from them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent

CODE_TYPES = {"fp64": np.uint64, "fp32": np.uint32, "fp16": np.uint16, "bf16": np.uint16}
CODE_TYPES |= {"fp8e4nv": np.uint8, "fp8e5": np.uint8}
"""Names of types as in Triton, and the unsigned integers that hold their codes."""


def find_headers() -> Path | None:
    """A folder that holds cuda_fp8.hpp: a CUDA toolkit's, or the one inside Triton's wheel. None if there is none."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    folders = [Path(home) / "include" for home in homes if home]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends/nvidia/include")
    return next((folder for folder in folders if (folder / "cuda_fp8.hpp").exists()), None)


@functools.cache
def build() -> Path:
    """Compile the emulation once. FileNotFoundError where a header or g++ is missing."""
    headers = find_headers()
    if headers is None or shutil.which("g++") is None:
        raise FileNotFoundError("needs g++ and cuda_fp8.hpp: set CUDA_HOME, or install triton, whose wheel has it")
    program = Path(tempfile.mkdtemp(prefix="nvidia_header_")) / "nvidia_header"
    source = HERE / "nvidia_header.cpp"
    subprocess.run(["g++", "-O2", "-I", headers, "-idirafter", HERE, source, "-o", program], check=True)
    return program


def convert(codes: NDArray[np.unsignedinteger], source: str, target: str) -> NDArray[np.unsignedinteger]:
    """Codes of `target` that NVIDIA's header gives for codes of `source` (round to nearest even; FP8 saturating).

    From fp32 and fp64 there are targets with another policy in their names, all of bytes: fp8e4nv_nosat, fp8e5_nosat;
    e2m3, e3m2 and e2m1 each with _rn or _rz; e8m0_rz, e8m0_rp, e8m0_rz_nosat, e8m0_rp_nosat. From fp32 alone there are
    fp16 and bf16 with _rz, _rm (toward negative) and _rp (toward positive).
    """
    patterns = np.ascontiguousarray(codes, CODE_TYPES[source])
    done = subprocess.run([build(), f"{source}_to_{target}"], input=patterns.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, CODE_TYPES.get(target.split("_")[0], np.uint8)).reshape(patterns.shape)


FP32_INF = 0x7F800000


def thresholds(target: str) -> NDArray[np.uint32]:
    """For each code k = 1, 2, ... that is reached, the smallest positive binary32 pattern that becomes code k.

    Bisection: conversions are monotone on positive patterns, and infinity becomes the largest code that a number may.
    """
    [largest] = convert(np.array([FP32_INF]), "fp32", target)
    wanted = np.arange(1, int(largest) + 1)
    below, reached = np.zeros(wanted.size, np.int64), np.full(wanted.size, FP32_INF)
    while (reached - below > 1).any():
        middle = (below + reached) // 2
        enough = convert(middle, "fp32", target) >= wanted
        below, reached = np.where(enough, below, middle), np.where(enough, middle, reached)
    return reached.astype(np.uint32)
