"""Put someone else's GEMM through everything that GEMMs get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fp8sim import casting, formats, interop, mma
from fp8sim.formats import FORMATS, Format
from fp8sim.testing import gemm_cases
from fp8sim.testing.assertions import describe, first_index
from fp8sim.testing.elements import Array, decoded, elements, like, numpy_dtype, widened
from fp8sim.testing.gemm_cases import Block, Case, Operands, Shape, scaled
from fp8sim.testing.reports import Check, Report

SHAPES: tuple[Shape, ...] = ((16, 16, 16), (17, 5, 33), (64, 64, 64), (130, 70, 200), (1, 1, 1))
"""M, N, K: tiles, no multiple of a tile, and one element."""

_OUTPUTS = ("float32", "float64", "float16", "bfloat16")


def check_gemm(
    my_gemm: Callable[..., Any],
    *,
    a_format: str | Format,
    b_format: str | Format | None = None,
    shapes: Sequence[Shape] = SHAPES,
    takes: Literal["numpy", "torch"] = "torch",
    operands: Literal["values", "codes", "native"] = "values",
    output: str = "float32",
    a_scale_block: Block | None = None,
    b_scale_block: Block | None = None,
    scale_format: str = "float32",
    accumulator_bits: int = 24,
    error_bound: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = mma.float32_error_bound,
    special_values: bool = True,
    strided: bool = True,
    device: str = "cpu",
) -> Report:
    """Compare a GEMM with the exact sum: bit for bit where every order of adding gives it, else within an error bound.

    For every shape: exact sums of signed powers of two; sums that fill the accumulator; impulses at every k, against
    every number of the other format; single scale factors doubled; NaN and infinities; normal data within the bound.
    One product has transposed operands in memory. The sign of a zero result is not compared: it depends on the order.

    Args:
        my_gemm: (a [M, K], b [K, N]) -> [M, N], or (a, b, a_scale_inv, b_scale_inv): factors on the decoded operands,
            of which only those are passed that have a block.
        a_format, b_format: of the operands, with zero; b_format defaults to a_format.
        shapes: M, N, K of the products: name those around the kernel's tiles, and only those that it takes.
        takes: what it gets, NumPy arrays or torch tensors.
        operands: "values": numbers in float32. "codes": integers. "native": the dtype of torch or ml_dtypes; of
            float4_e2m1fn, torch's packed float4_e2m1fn_x2, a [M, K / 2] and b [K / 2, N], in memory as its transpose.
        output: dtype of the result: float32, float64, float16 or bfloat16, rounded once from the accumulator.
        a_scale_block, b_scale_block: rows and columns that share a float32 factor, None for all of them: (None, None)
            per tensor, (1, None) and (None, 1) per row of a and column of b, (1, 32) and (32, 1) for MX blocks,
            (128, 128). The factors come as an array with one element per block. None: no factor.
        scale_format: what factors are rounded to: float32, or float8_e8m0fnu for powers of two.
        accumulator_bits: sums of so many bits are exact in any order: 24 for float32, 14 for a tensor core that keeps
            13 bits of fraction.
        error_bound: (a [M, K], b [K, N]) with factors applied, binary64 -> [M, N], the largest error of random data.
        special_values, strided: False leaves NaN and infinities, or transposed memory, out; the report says so.
        device: where tensors go, for `takes="torch"`.

    Returns:
        What was compared.

    Raises:
        AssertionError: a property does not hold. The message names it and the shape, the first element, both results,
            and, if there is one, the fault that gives exactly this result.
        ValueError, TypeError: an argument that makes no sense.
    """
    __tracebackhide__ = True
    a = formats.parse(a_format)
    pair = (a, a if b_format is None else formats.parse(b_format))
    parts = Operands(*pair, a_scale_block, b_scale_block, accumulator_bits)
    _check_arguments(parts, shapes, takes, operands, output)
    subject = _Subject(my_gemm, parts, takes, operands, output, device)
    generator = np.random.default_rng(0)
    checks: dict[str, Check] = {}
    for shape in shapes:
        for case in _exact_cases(parts, shape, generator, special_values):
            _add(checks, subject.check_exact(case))
        random = gemm_cases.random_data(parts, shape, generator, scale_format)
        _add(checks, subject.check_random(random, error_bound))
    if strided:
        case = next(gemm_cases.exact_sums(parts, max(shapes, key=math.prod), generator))
        _add(checks, subject.check_exact(case._replace(name="operands transposed in memory"), transposed=True))
    left_out = {"NaN and infinities, by request": special_values, "transposed operands, by request": strided}
    return Report(subject.name, tuple(checks.values()), tuple(text for text, wanted in left_out.items() if not wanted))


@dataclass(frozen=True)
class _Subject:
    """A GEMM and what it claims."""

    gemm: Callable[..., Any]
    parts: Operands
    takes: str
    operands: str
    output: str
    device: str

    @property
    def name(self) -> str:
        return f"GEMM of {self.parts.a_format} and {self.parts.b_format} to {self.output}"

    def check_exact(self, case: Case, *, transposed: bool = False) -> Check:
        __tracebackhide__ = True
        found, expected = self.run(case, transposed), self.rounded(exact_product(self.parts, case))
        wrong = ~_equal(found, expected)
        if wrong.any():
            raise AssertionError(self.difference(case, found, expected, wrong) + self.diagnosis(case, found))
        return Check(_family(case.name), found.size)

    def check_random(self, case: Case, error_bound: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Check:
        __tracebackhide__ = True
        found, exact = widened(self.run(case, transposed=False)), exact_product(self.parts, case)
        a, b = (torch.from_numpy(x) for x in _factored(self.parts, case))
        allowed = error_bound(a, b).numpy() + self.output_rounding(exact)
        wrong = ~(np.abs(found - exact) <= allowed)
        if wrong.any():
            worst = first_index(np.abs(found - exact) / allowed == np.nanmax(np.abs(found - exact) / allowed))
            raise AssertionError(
                f"{self.where(case)}: {int(wrong.sum())} of {wrong.size} lie outside, the worst at {list(worst)}: "
                f"got {float(found[worst])!r}, exact {float(exact[worst])!r}, bound {float(allowed[worst])!r}"
            )
        return Check(case.name, found.size)

    def run(self, case: Case, transposed: bool) -> Array:
        """The result, [M, N] in the output dtype; AssertionError if it is of another kind."""
        __tracebackhide__ = True
        given = [self.operand(case.a, self.parts.a_format, transposed=transposed)]
        given += [self.operand(case.b.T, self.parts.b_format, transposed=not transposed).T]
        given += [like(x, self.takes, self.device) for x in (case.a_scale_inv, case.b_scale_inv) if x is not None]
        try:
            with np.errstate(all="ignore"):
                result = self.gemm(*given)
        except Exception as error:
            raise AssertionError(f"{self.where(case)}: it raised {type(error).__name__}: {error}") from error
        found = elements(result, "the result")
        m, n, _ = case.shape
        if found.dtype != self.output or found.bits.shape != (m, n):
            got = f"{found.dtype} {list(found.bits.shape)}"
            raise AssertionError(f"{self.where(case)}: got {got}, expected {self.output} {[m, n]}")
        return found.bits.view(numpy_dtype(self.output))

    def operand(self, x: Array, fmt: Format, *, transposed: bool) -> Any:
        """Numbers [R, K] of `fmt` as the GEMM takes them, in memory as they are or transposed."""
        codes = casting.encode(x, fmt, overflow="INFINITY" if fmt.infinity else "SATURATE")
        codes = np.ascontiguousarray(codes.T).T if transposed else codes
        if self.operands == "codes":
            return like(codes, self.takes, self.device)
        native = self.operands == "native"
        if native and self.takes == "numpy":
            return interop.to_ml_dtypes(codes, fmt)
        if native and fmt == FORMATS["float4_e2m1fn"]:
            return interop.pack_float4(like(codes, self.takes, self.device))
        if native and fmt.name not in _OUTPUTS:
            return interop.to_torch_float8(like(codes, self.takes, self.device), fmt)
        dtype = fmt.name if native else "float32"
        values = decoded(codes.T, fmt, dtype).T if transposed else decoded(codes, fmt, dtype)
        return like(values, self.takes, self.device)

    def rounded(self, exact: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return exact.astype(numpy_dtype(self.output))

    def output_rounding(self, exact: Array) -> Array:
        """The most that rounding the result to a narrow output adds; the bound of the sum has room for float32."""
        if self.output in ("float32", "float64"):
            return np.zeros(exact.shape)
        fmt = FORMATS[self.output]
        relative: Array = np.abs(exact) * 2.0**-fmt.mantissa_bits
        return relative + float(fmt.smallest)

    def where(self, case: Case) -> str:
        m, n, k = case.shape
        return f"{self.name}, M={m} N={n} K={k}: {case.name}"

    def difference(self, case: Case, found: Array, expected: Array, wrong: Array) -> str:
        index = first_index(wrong)
        got, wanted = (describe(elements(x, "the result"), index) for x in (found, expected))
        count = f"{int(wrong.sum())} of {wrong.size} differ"
        return f"{self.where(case)}: {count}, first at {list(index)}: got {got}, expected {wanted}"

    def diagnosis(self, case: Case, found: Array) -> str:
        """A line that names the fault which gives exactly this result, or nothing."""
        with np.errstate(all="ignore"):
            for name, product in _faults(self.parts, case):
                if product.shape == found.shape and _equal(found, self.rounded(product)).all():
                    return f"\nthis is the result with {name}"
        return ""


def exact_product(parts: Operands, case: Case) -> Array:
    """[M, N], the product in binary64: exact for every case but random data, and near enough for that."""
    a, b = _factored(parts, case)
    with np.errstate(invalid="ignore", over="ignore"):
        product: Array = a @ b
    return product


def _factored(parts: Operands, case: Case) -> tuple[Array, Array]:
    return scaled(case.a, case.a_scale_inv, parts.a_block), scaled(case.b, case.b_scale_inv, parts.b_block)


def _exact_cases(parts: Operands, shape: Shape, generator: np.random.Generator, special_values: bool) -> Iterator[Case]:
    """Every case of one shape whose result is known bit for bit, the plainest first."""
    yield from gemm_cases.exact_sums(parts, shape, generator)
    yield from gemm_cases.impulses(parts, shape)
    yield from gemm_cases.scale_impulses(parts, shape, generator)
    if special_values:
        yield from gemm_cases.special_values(parts, shape, generator)


def _faults(parts: Operands, case: Case) -> Iterator[tuple[str, Array]]:
    """(what the GEMM would have done, its product) for the faults known here."""
    m, n, k = case.shape
    if k == n:
        yield "b transposed", exact_product(parts, case._replace(b=case.b.T))
    if m == k:
        yield "a transposed", exact_product(parts, case._replace(a=case.a.T))
    if m == n:
        yield "the result transposed", exact_product(parts, case).T
    a, b = _factored(parts, case)
    for tail in sorted({k % tile for tile in (8, 16, 32, 64, 128, 256)} - {0, k}):
        yield f"the last {tail} of {k} products dropped", a[:, : k - tail] @ b[: k - tail]
    for narrow in ("bfloat16", "float16"):
        yield f"the sum rounded to {narrow}", casting.cast(a @ b, narrow, overflow="INFINITY")
    for name, a_scale_inv, b_scale_inv in _wrong_factors(case):
        yield name, exact_product(parts, case._replace(a_scale_inv=a_scale_inv, b_scale_inv=b_scale_inv))


def _wrong_factors(case: Case) -> Iterator[tuple[str, Array | None, Array | None]]:
    a, b = case.a_scale_inv, case.b_scale_inv
    if a is not None:
        yield "a_scale_inv left out", np.ones_like(a), b
        yield "a_scale_inv divided by", 1 / a, b
    if b is not None:
        yield "b_scale_inv left out", a, np.ones_like(b)
        yield "b_scale_inv divided by", a, 1 / b
    if a is not None and b is not None:
        yield "both factors left out", np.ones_like(a), np.ones_like(b)
        if a.size == b.size:
            yield "a_scale_inv and b_scale_inv swapped", b.reshape(a.shape), a.reshape(b.shape)


def _equal(found: Array, expected: Array) -> Array:
    """[M, N], equal numbers, or NaN both."""
    with np.errstate(invalid="ignore"):
        equal: Array = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return equal


def _family(name: str) -> str:
    """Cases that differ in a position alone are one property of the report."""
    if "scale_inv" in name:
        return "single scale factors doubled"
    return name.partition(" at k=")[0]


def _add(checks: dict[str, Check], check: Check) -> None:
    before = checks.get(check.name, Check(check.name, 0, 0))
    checks[check.name] = Check(check.name, before.compared + check.compared, before.calls + check.calls)


def _check_arguments(parts: Operands, shapes: Sequence[Shape], takes: str, operands: str, output: str) -> None:
    for fmt in (parts.a_format, parts.b_format):
        if not fmt.zero:
            raise ValueError(f"{fmt} has no zero, and no impulse can be made of it: it is no format of an operand")
    if not shapes or any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
        raise ValueError(f"shapes={shapes!r}: expected at least one (M, N, K), each 1 or more")
    if not 1 <= parts.accumulator_bits <= 52:
        raise ValueError(f"accumulator_bits={parts.accumulator_bits}: expected 1 to 52; binary64 states the exact sum")
    for argument, value, allowed in (
        ("takes", takes, ("numpy", "torch")),
        ("operands", operands, ("values", "codes", "native")),
        ("output", output, _OUTPUTS),
    ):
        if value not in allowed:
            raise ValueError(f"{argument}={value!r}: use one of {', '.join(allowed)}")
