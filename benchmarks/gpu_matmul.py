"""Matrix products on a GPU against torch's: `python -m benchmarks.gpu_run --suite matmul`.

Elements of the very product that is timed, from all over it, are first compared bit for bit with what `fp8sim.matmul`
predicts from the plan that the launch states. Operands are random numbers.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import fp8sim
from benchmarks import gpu_peers
from benchmarks.gpu_bars import BF16_PRODUCT, CUDA_PRODUCT, FP8_PRODUCT, Bar
from benchmarks.gpu_rows import Absent, Case, Work
from benchmarks.gpu_timing import Call, Device
from fp8sim import backends
from fp8sim.mma.plans import GemmPlan

E4M3, E5M2, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16

CHECKED = 64
"""Rows and columns of a product that are predicted."""

SIZES = ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 14336, 4096))
TINY = ((96, 80, 128), (64, 64, 64), (64, 128, 64))


@dataclass(frozen=True)
class Product:
    """a [M, K] @ b [N, K]^T with a result in bfloat16.

    Attributes:
        backend: whose kernel multiplies.
        size: M, N, K.
        dtypes: of a and b.
        options: of the kernel.
    """

    backend: str
    size: tuple[int, int, int]
    dtypes: tuple[torch.dtype, torch.dtype]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        types = " x ".join(str(dtype).removeprefix("torch.").removeprefix("float8_") for dtype in self.dtypes)
        options = [f"{name}={value}" for name, value in self.options.items()]
        return ", ".join(["x".join(map(str, self.size)), types, *options, self.backend])

    @property
    def is_fp8(self) -> bool:
        return self.dtypes[0].itemsize == 1

    @property
    def bar(self) -> Bar:
        if not self.is_fp8:
            return BF16_PRODUCT
        return CUDA_PRODUCT if self.backend == "cuda" else FP8_PRODUCT

    @property
    def kernels(self) -> Any:
        """The module of the backend's kernel: `matmul`, and `plan_of`, which states in what order it adds."""
        package, _, _ = backends.row("matmul", self.backend).implementation.partition(":")[0].rpartition(".")
        return importlib.import_module(f"{package}.matmul")

    def run(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.kernels.matmul(a, b, out_dtype=BF16, **self.options)
        return result

    def plan(self, device: Device) -> GemmPlan:
        plan: GemmPlan = self.kernels.plan_of(self.dtypes[0], device.capability, **self.options)
        return plan


def products(device: Device) -> Iterator[Product]:
    names = [row.name for row in backends.rows("matmul") if row.name != "simulate"]
    for backend, size in itertools.product(names, device.size(SIZES, TINY)):
        yield Product(backend, size, (E4M3, E4M3))
        yield Product(backend, size, (E5M2, E4M3))
        yield Product(backend, size, (E4M3, E4M3), {"fast_accumulation": False})
        yield Product(backend, size, (BF16, BF16))


def operands(product: Product, device: Device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    m, n, k = product.size
    a, b = product.dtypes
    return device.numbers((m, k), a, seed), device.numbers((n, k), b, -1 - seed)


def wrong(product: Product, device: Device, a: torch.Tensor, b: torch.Tensor) -> str:
    """How many elements are not what the plan predicts; empty if all are."""
    rows, columns = (torch.linspace(0, len(x) - 1, min(CHECKED, len(x))).long() for x in (a, b))
    actual = product.run(a, b).cpu()[rows][:, columns]
    plan = product.plan(device)
    expected = fp8sim.matmul(_rows(a, rows), _rows(b, columns).T, plan=plan, output="bfloat16")
    differing = int((actual.view(torch.int16) != expected.view(torch.int16)).sum())
    return f"{differing} of {actual.numel()} are not what {plan} predicts" if differing else ""


def _rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of x, whose dtype may be one that torch cannot index."""
    as_integers = x.cpu().view(torch.uint8 if x.element_size() == 1 else torch.int16)
    return as_integers[rows].view(x.dtype)


def work(product: Product, device: Device) -> Work:
    if missing := backends.row("matmul", product.backend).missing():
        raise Absent(missing)
    m, n, k = product.size
    width = product.dtypes[0].itemsize
    read = (m + n) * k * width
    inputs = [operands(product, device, seed) for seed in range(device.sets(read))]
    fast = product.options.get("fast_accumulation", True)

    def run(turn: int) -> torch.Tensor:
        return product.run(*inputs[turn % len(inputs)])

    def scaled_mm(turn: int) -> torch.Tensor:
        return gpu_peers.scaled_mm(*inputs[turn % len(inputs)], fast_accumulation=fast)

    def torch_matmul(turn: int) -> torch.Tensor:
        a, b = inputs[turn % len(inputs)]
        return torch.matmul(a, b.T)

    peers: dict[str, Call] = {"torch._scaled_mm": scaled_mm} if product.is_fp8 else {"torch.matmul": torch_matmul}
    return Work(
        run=run,
        wrong=lambda: wrong(product, device, *inputs[0]),
        bytes=read + 2 * m * n,
        flops=2 * m * n * k,
        operands="FP8" if product.is_fp8 else "BF16",
        peers=peers,
    )


def cases(device: Device) -> Iterator[Case]:
    for product in products(device):
        if product.is_fp8 and device.capability < (8, 9):
            continue  # torch has no such product there, and the kernel's is in float16
        yield Case(product.name, functools.partial(work, product), product.bar)
