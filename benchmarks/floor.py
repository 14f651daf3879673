"""The floors: `floor.cpp`, compiled on first use for the processor it runs on."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).with_name("floor.cpp")
FLAGS = ["-O3", "-shared", "-fPIC", "-fno-tree-loop-distribute-patterns"]
NATIVE = ["-march=native", "-mprefer-vector-width=512"] if platform.machine() == "x86_64" else ["-mcpu=native"]

Array = np.ndarray[Any, Any]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled floors. RuntimeError with the compiler's message if there is none."""
    command = [os.environ.get("CXX", "c++"), *FLAGS, *NATIVE]
    key = hashlib.sha256((SOURCE.read_text() + " ".join(command) + platform.node()).encode()).hexdigest()[:16]
    target = Path(tempfile.gettempdir(), f"fp8sim-floor-{os.getuid()}-{key}.so")
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*command, str(SOURCE), "-o", str(partial)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the floors do not compile: {done.stderr.strip()}")
        partial.replace(target)
    loaded = ctypes.CDLL(str(target))
    loaded.arithmetic.restype = ctypes.c_uint32
    return loaded


def copy(source: Array, target: Array) -> None:
    """Move each element of `source` to `target`, of 4 or 1 bytes each."""
    move = getattr(library(), f"copy_{source.itemsize}_to_{target.itemsize}")
    size = ctypes.c_int64(source.size)
    move(ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(target.ctypes.data), size)


def arithmetic(steps: int) -> int:
    """Arithmetic that touches no memory; releases the interpreter lock."""
    result: int = library().arithmetic(ctypes.c_int64(steps))
    return result
