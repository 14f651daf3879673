"""Which instruction a probe really is: its mnemonics in the machine code of `fp8sim._cuda`."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fp8sim.analysis.probing.device import Kernel

_MARKERS = ("HGMMA.64x8x16.F16 RZ, gdesc[URZ], RZ",)
"""What the compiler ends a group of wgmma with; it computes nothing."""


def mnemonics(kernel: Kernel, architecture: str, variant: str = "shared") -> list[str]:
    """The products and ordinary additions of a kernel, in order: ["QGMMA.64x8x32.F32.E4M3.E4M3"]; [] where unknown.

    Unknown is the machine code for an architecture that the driver compiles for, and all of it without cuobjdump.

    Args:
        architecture: as in the file: "sm_80", "sm_89", "sm_90a".
    """
    code = functions(architecture)
    number = ("shared", "registers", "negated").index(variant)
    suffix = rf"E.*ProbeVariantE{number}E" if kernel.ptx.startswith("wgmma") else "E"
    found = [text for name, text in code.items() if re.search(rf"\d{kernel.symbol}{suffix}", name)]
    if len(found) != 1:
        return []
    lines = [line for line in found[0].splitlines() if not any(marker in line for marker in _MARKERS)]
    names = re.findall(r"\b(\w*MMA\.\S+|FADD|HADD2)", "\n".join(lines))
    return list(dict.fromkeys(names))


def of_triton(kernel: Any) -> list[str]:
    """The products, sums and conversions to and from FP8 of a compiled Triton kernel; [] without cuobjdump."""
    tool = cuobjdump()
    if tool is None:
        return []
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True).stdout
    lines = [line for line in listing.splitlines() if not any(marker in line for marker in _MARKERS)]
    return list(dict.fromkeys(re.findall(r"\b(\w*MMA\.\S+|F2FP\.\S+|FADD|FMUL|FFMA)", "\n".join(lines))))


def architecture_in_file(capability: int) -> str:
    """Whose machine code a device of this compute capability runs; "" where the driver compiles PTX."""
    return {8: "sm_89" if capability == 89 else "sm_80", 9: "sm_90a"}.get(capability // 10, "")


@functools.cache
def functions(architecture: str) -> dict[str, str]:
    """Kernel -> its machine code."""
    tool, module = cuobjdump(), importlib.util.find_spec("fp8sim._cuda")
    if tool is None or module is None or not architecture:
        return {}
    command = [tool, "-sass", "-arch", architecture, str(module.origin)]
    listing = subprocess.run(command, capture_output=True, text=True)
    _, *parts = re.split(r"Function : (\w+)", listing.stdout)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def cuobjdump() -> str | None:
    """NVIDIA's object dumper: the CUDA toolkit's, or the one in Triton's wheel."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(str(triton and triton.origin)).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump")
