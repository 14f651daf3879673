"""What the launchers of the casts share: which tensors a kernel takes, and as what it sees them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from fp8sim.formats import FORMATS
from fp8sim.random_bits import random_keywords, signed64
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve
from fp8sim.triton_kernels import interpreter
from fp8sim.triton_kernels.requirements import require


def require_device(argument: str, x: torch.Tensor) -> None:
    """RuntimeError unless kernels of this process can run on x's device, and its GPU has what all of them need."""
    if triton.knobs.runtime.interpret and not interpreter.is_enabled():
        raise RuntimeError(
            "TRITON_INTERPRET is set, and Triton's own interpreter converts wrongly: unset it, or call "
            "fp8sim.triton_kernels.interpreter.enable(), which corrects it"
        )
    if x.is_cuda:
        require("Triton kernels", torch.cuda.get_device_capability(x.device), x.device)
        return
    if x.device.type == "cpu" and interpreter.is_enabled():
        return
    raise RuntimeError(
        f"{argument} is on {x.device}: Triton kernels run on CUDA tensors, and on CPU tensors only in the interpreter; "
        f"move it to a CUDA device, or call fp8sim.triton_kernels.interpreter.enable()"
    )


_RAW = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def raw_bits(x: torch.Tensor) -> torch.Tensor:
    """The elements' bits, in row-major order."""
    return x.detach().resolve_neg().contiguous().view(_RAW[x.element_size()])


def elements_per_program(block: int | None, elements: int) -> int:
    """Elements per program. The interpreter takes milliseconds per program whatever its size, so it gets large ones."""
    if block is None:
        largest = 1 << 18 if interpreter.is_enabled() else 1 << 10
        return min(max(1 << (elements - 1).bit_length(), 64), largest)
    if block not in [1 << k for k in range(6, 21)]:
        raise ValueError(f"block={block}: expected a power of two from 64 to 2^20")
    return block


def float_type(argument: str, x: Any) -> tuple[Conversion | None, int, Conversion | None]:
    """Of x's dtype: how its bits widen to a pattern, how many bits that has, how a pattern becomes its bits again."""
    dtype = x.dtype if isinstance(x, torch.Tensor) else None
    if dtype in (torch.float32, torch.float64):
        return None, 8 * dtype.itemsize, None
    if dtype not in (torch.float16, torch.bfloat16):
        got = f"{type(x).__name__} {dtype or ''}".strip()
        raise TypeError(f"{argument} must be a torch tensor of float64, float32, float16 or bfloat16, got {got}")
    fmt = FORMATS[str(dtype).removeprefix("torch.")]
    to = resolve(fmt, Rounding.TIES_TO_EVEN, Overflow.INFINITY)
    quiet_nan = to.inf_code | 1 << (to.mantissa_bits - 1)
    to = to._replace(nan_positive=quiet_nan, nan_negative=quiet_nan | to.sign_bit)
    return (to if dtype == torch.float16 else None), 32, to


class RandomIntegers(NamedTuple):
    """Which random integers a launch draws: arguments of `cast`, in the units of the kernels."""

    seed: int = 0
    stream: int = 0
    first_group: int = 0
    skipped: int = 0
    bits: int = 0


def random_integers_of(to: Conversion, seed: int | None, stream: int, offset: int, random_bits: int) -> RandomIntegers:
    """The launch's random integers. ValueError for a seed that is missing or unused, or more bits than there are."""
    words = random_keywords(Rounding(to.rounding), seed, stream, offset, random_bits)
    if not words:
        return RandomIntegers()
    key, counter = (signed64(name, words[name]) for name in ("seed", "stream"))  # as Triton passes integers
    return RandomIntegers(key, counter, words["offset"] // 64, words["offset"] % 64, words["random_bits"])
