"""Do kernels compute what the simulator says? One row per implementation other than the simulator's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fp8sim import mma, quantizers
from fp8sim.analysis.arithmetic import Row, float32_patterns
from fp8sim.backends import BACKENDS, Backend
from fp8sim.backends import row as backend_row
from fp8sim.compare import NOTHING, Comparison, bitwise, within

CAST_ELEMENTS = 1 << 24
"""float32 numbers that a cast kernel is compared on."""

GEMM_SIZE = (200, 136, 328)
"""M, N, K, none a multiple of a tile."""


def kernel_backends() -> list[Backend]:
    """The rows of `BACKENDS` that `kernel_rows` checks."""
    return [backend for backend in BACKENDS if backend.name != "simulate" and backend.op in _CHECKS]


def kernel_name(backend: Backend) -> str:
    """As tables and options name it."""
    return f"{backend.name}.{backend.op}"


def kernel_rows(cast_elements: int = CAST_ELEMENTS) -> Iterator[Row]:
    """The rows of all kernels, in the order of `BACKENDS`; one that cannot run here is NOT CHECKED and says why."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for backend in kernel_backends():
        label, check = _CHECKS[backend.op]
        kernel, reason = kernel_name(backend), backend.missing()
        name = f"{kernel} {label}"
        if reason is not None:
            yield Row(name, "-", backend.contract, NOTHING, reason, kernel)
            continue
        ran_on = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
        yield Row(name, ran_on, backend.contract, check(backend, device, cast_elements), kernel=kernel)


def check_cast(backend: Backend, device: str, elements: int) -> Comparison:
    """Cast `elements` float32 patterns to e4m3, encode a few, decode every code: every bit as the simulator's.

    `backend` is the row of the cast; the rows of the other two are those of the same name.
    """
    x = float32_patterns(elements)
    codes = torch.arange(256).to(torch.uint8)
    total = NOTHING
    for op, given in (("cast", x), ("encode", x[: elements // 16]), ("decode", codes)):
        kernel = backend if op == backend.op else backend_row(op, backend.name)
        expected = backend_row(op, "simulate").load()(given, "e4m3")
        total += bitwise(op, kernel.load()(given.to(device), "e4m3").cpu(), expected)
    return total


def check_encode_scaled(backend: Backend, device: str, elements: int) -> Comparison:
    """Codes of random data with special values times a factor, transposed codes and amax: every bit the simulator's."""
    simulate = backend_row("encode_scaled", "simulate").load()
    total, x = NOTHING, _data()
    for fmt in ("e4m3", "e5m2"):
        for scale in (None, 0.3):
            actual = backend.load()(x.to(device), fmt, scale, amax=True, transpose=True)
            expected = simulate(x, fmt, scale, amax=True, transpose=True)
            for what, a, e in zip(("codes", "transposed codes", "amax"), actual, expected, strict=True):
                total += bitwise(f"encode_scaled {fmt}: {what}", a.cpu(), e)
    return total


def check_quantize(backend: Backend, device: str, elements: int) -> Comparison:
    """Codes and factors of random data with special values by MX, NVFP4, block, row and tensor quantizers."""
    narrow = () if backend.converts == "hardware conversion" else ("mxfp4", "nvfp4", "nvfp4_te", "nvfp4_torchao")
    total, x = NOTHING, _data()
    for name in ("mxfp8", "fp8_1x128", "fp8_128x128", "fp8_row_torchao", "fp8_tensor_te", *narrow):
        actual = backend.load()(x.to(device), quantizers.parse(name)).cpu()
        expected = quantizers.parse(name).quantize(x)
        for part in ("codes", "scales", "tensor_scale"):
            if getattr(expected, part) is not None:
                total += bitwise(f"quantize {name}: {part}", getattr(actual, part), getattr(expected, part))
    return total


def _data() -> torch.Tensor:
    """[300, 1000], no multiple of a tile: random numbers of many magnitudes, infinity, NaN and a row of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1000, generator=generator) * torch.exp2(torch.randint(-20, 21, (300, 1), generator=generator))
    x[1, 7], x[2, 8], x[3, -1], x[4] = torch.inf, -torch.inf, torch.nan, 0.0
    return x


def check_gemm(backend: Backend, device: str, elements: int) -> Comparison:
    """FP8 GEMMs with ragged sizes: exact sums and impulses bit for bit, other data within the error bound.

    The kernel gets what a layer gives it, numbers off the grid, overflow, infinity and NaN included, and casts them
    itself; only the reference is cast beforehand. Operands are also given transposed, as backward passes do.
    """
    m, n, k = GEMM_SIZE
    generator = torch.Generator().manual_seed(0)
    gemm = backend.load()

    def run(a: torch.Tensor, b: torch.Tensor, formats: str = "e4m3 e4m3", scale: float = 0.5) -> torch.Tensor:
        first, second = map(quantizers.parse, formats.split())
        result: torch.Tensor = gemm(a.to(device), b.to(device), quantizers=(first, second), scale=scale)
        return result.cpu()

    a, b = exact_sum_operands(m, n, k, generator)
    total = bitwise("gemm of an exact sum", run(a, b), (a.double() @ b.double() * 0.5).float())
    for at in (0, k // 2, k - 1):
        impulse = torch.zeros(m, k)
        impulse[:, at] = 1.0
        total += bitwise(f"gemm of an impulse at k={at}", run(impulse, b), (impulse @ b) * 0.5)
    a, b = torch.randn(m, k, generator=generator) * 150, torch.randn(k, n, generator=generator)
    a[0, 0], a[1, 1] = torch.inf, torch.nan
    for formats in ("e4m3 e4m3", "e5m2 e4m3", "e4m3 e5m2"):
        for left, right in ((a, b), (a.mT.contiguous().mT, b.mT.contiguous().mT)):
            total += _within_bound(formats, run(left, right, formats, 0.3), a, b)
    return total


def _within_bound(formats: str, actual: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Comparison:
    """0.3 a b after casting both, except that rows of NaN must be rows of NaN."""
    first, second = map(quantizers.parse, formats.split())
    a, b = first(a), second(b)
    exact = a.double() @ b.double() * 0.3
    numbers = ~exact.isnan()
    what = f"gemm {formats.replace(' ', ' x ')} of random data"
    total = bitwise(f"{what}: where it is NaN", actual.isnan().int(), exact.isnan().int())
    return total + within(what, actual[numbers], exact[numbers], mma.float32_error_bound(a, b, scale=0.3)[numbers])


def check_matmul(backend: Backend, device: str, elements: int) -> Comparison:
    """Products of random codes with factors of rows, in the order that the kernel states for this device: every bit.

    In the interpreter the tensor core's instruction is the simulator's model of it; how the kernel strings instructions
    together, and what it does before and after, is the kernel's own. A device whose order is not known is not compared.
    """
    from fp8sim.triton_kernels import matmul as kernels

    m, n, k = GEMM_SIZE
    generator = torch.Generator().manual_seed(0)
    total = NOTHING
    for names in (("float8_e4m3fn", "float8_e4m3fn"), ("float8_e5m2", "float8_e4m3fn"), ("bfloat16", "bfloat16")):
        dtypes = [getattr(torch, name) for name in names]
        a, b = (torch.randn(rows, k, generator=generator).to(t) for rows, t in zip((m, n), dtypes, strict=True))
        factors = [torch.rand(rows, generator=generator) + 0.5 for rows in (m, n)]
        try:
            plan = kernels.plan_of(dtypes[0], kernels.capability_of(a.to(device)))
        except ValueError as error:
            return Comparison(0, 0, str(error))
        simulate, options = backend_row("matmul", "simulate").load(), {"plan": plan, "output": "bfloat16"}
        expected = simulate(a, b.mT, a_scale_inv=factors[0], b_scale_inv=factors[1], **options)
        left, right, *sent = (x.to(device) for x in (a, b, *factors))
        with _modelled(plan, names) if device == "cpu" else contextlib.nullcontext():
            actual = backend.load()(left, right.mT, a_scale_inv=sent[0], b_scale_inv=sent[1], **options)
        total += bitwise(f"matmul {' x '.join(names)}", actual.cpu(), torch.as_tensor(expected))
    return total


def _modelled(plan: mma.GemmPlan, names: tuple[str, str]) -> contextlib.AbstractContextManager[None]:
    """In the interpreter, `tl.dot` by the simulator's model of the instruction."""
    from fp8sim.triton_kernels import interpreter

    model = mma.resolve(plan, *names)

    def codes(values: Any, name: str) -> Any:
        typed = torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, name))
        return typed.view(torch.uint8 if typed.element_size() == 1 else torch.uint16).numpy()

    def dot(a: Any, b: Any, c: Any, imprecise: int) -> Any:
        return mma.chain(codes(a.values, names[0]), codes(b.values.T, names[1]), np.ascontiguousarray(c), model=model)

    return interpreter.use_dot(dot)


def check_gemm_backward(backend: Backend, device: str, elements: int) -> Comparison:
    """Both products of a backward pass with ragged sizes: exact sums, bit for bit."""
    m, n, k = GEMM_SIZE
    generator = torch.Generator().manual_seed(0)
    (grad, weight), (a, _) = exact_sum_operands(m, k, n, generator), exact_sum_operands(m, n, k, generator)
    b = weight.T
    casts = tuple(map(quantizers.parse, ("e5m2", "e4m3", "e4m3")))
    options = {"quantizers": casts, "scales": (0.5, 0.25), "accumulate": ("native",) * 2, "dtypes": (None,) * 2}
    found = backend.load()(grad.to(device), a.to(device), b.to(device), **options)
    exact = (grad.double() @ b.double().T * 0.5).float(), (grad.double().T @ a.double() * 0.25).float()
    names = ("gradient of the input", "gradient of the weight")
    return sum((bitwise(what, x.cpu(), y) for what, x, y in zip(names, found, exact, strict=True)), NOTHING)


def exact_sum_operands(m: int, n: int, k: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """a [M, K], b [K, N] of {-1, 0, 1} times powers of two, whose sums of products are exact in any order."""

    def draw(*shape: int) -> torch.Tensor:
        signs = torch.randint(-1, 2, shape, generator=generator).float()
        return signs * 2.0 ** torch.randint(-2, 3, shape, generator=generator).float()

    return draw(m, k), draw(k, n)


_CHECKS: dict[str, tuple[str, Callable[[Backend, str, int], Comparison]]] = {
    "cast": ("e4m3", check_cast),
    "encode_scaled": ("e4m3, e5m2", check_encode_scaled),
    "quantize": ("mx, nvfp4, block, row, tensor", check_quantize),
    "matmul": ("by plan", check_matmul),
    "gemm": ("e4m3, e5m2", check_gemm),
    "gemm_backward": ("e5m2", check_gemm_backward),
}
"""Operation: what its row is called after the kernel's name, and its check."""
