"""Matrix products by a chain of instructions over k, on NumPy arrays and CPU tensors of codes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fp8sim import _core, array_memory, casting, formats
from fp8sim.mma.models import MmaModel, core_fields, operand_dtype
from fp8sim.mma.names import parse

if TYPE_CHECKING:
    import torch

    _Array = TypeVar("_Array", np.ndarray[Any, Any], torch.Tensor)

Memory = np.ndarray[Any, Any]


def chain(
    a_codes: _Array,
    b_codes: _Array,
    c: _Array | None = None,
    *,
    model: MmaModel | str,
    a_scales: _Array | None = None,
    b_scales: _Array | None = None,
    out: _Array | None = None,
) -> _Array:
    """d = c + a · bᵀ, by one instruction after another over ascending k: the result of each is the next one's c.

    A last instruction that k does not fill gets zeros, as kernels give it; block-scaled ones with the last block's
    scale factor. With K = 0 no instruction runs, and d is c.

    Args:
        a_codes: [..., M, K], codes of `model.a_format`, uint8, uint16, uint32 or uint64 (`operand_dtype`); or an array
            of that format's own dtype, as float16 or torch.float8_e4m3fn. TF32 operands are binary32 bits or float32.
        b_codes: [..., N, K], codes of `model.b_format`: K is contiguous in both. Leading dimensions broadcast.
        c: [..., M, N], the accumulators that the first instruction adds to, in the model's accumulator's dtype;
            None: +0.
        model: an instruction, or its full name.
        a_scales: [..., M, ceil(K / scale_block)], uint8 codes of `model.scale_format`; for block-scaled models only.
        b_scales: [..., N, ceil(K / scale_block)].
        out: [..., M, N], C-contiguous, where to put the result; c itself allowed.

    Returns:
        [..., M, N], of the kind of `a_codes`, in the accumulator's dtype. NaN is the code that the unit returns:
        NVIDIA's fused adders set all bits but the sign; of others the payload is not specified, and the quiet NaN is
        returned. A zero of NVIDIA's fused adders is +0.

    Raises:
        ValueError: an unknown model, shapes that do not fit, codes outside the format, scale factors that are missing
            or not wanted, an `out` that is read-only, not contiguous, or overlaps an operand.
        TypeError: no array, or one of another dtype.
    """
    model = parse(model)
    a = _operand(a_codes, "a_codes", model.a_format, model)
    b = _operand(b_codes, "b_codes", model.b_format, model)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a_codes {list(a.shape)} and b_codes {list(b.shape)}: expected [..., M, K] and [..., N, K]")
    batch: tuple[int, ...] = _batch(a, b)
    shape = (*batch, a.shape[-2], b.shape[-2])
    start = None if c is None else _accumulator(c, "c", model)
    if start is not None and start.shape != shape:
        raise ValueError(f"c has shape {list(start.shape)}: expected {list(shape)}")
    scales = [
        _scales(given, argument, model, operand)
        for given, argument, operand in ((a_scales, "a_scales", a), (b_scales, "b_scales", b))
    ]
    result = _empty(a_codes, shape, model.accumulator) if out is None else out
    target = _accumulator(result, "out", model)
    if out is not None:
        _check_out(target, shape, a, b)
    _run(model, batch, a, b, start, target, scales)
    if out is not None and array_memory.is_tensor(out):
        sys.modules["torch"].autograd.graph.increment_version(out)
    return result


def _run(
    model: MmaModel,
    batch: tuple[int, ...],
    a: Memory,
    b: Memory,
    c: Memory | None,
    d: Memory,
    scales: list[Memory | None],
) -> None:
    """One matrix product after another."""
    fields = core_fields(model)
    left, right = _broadcast(a, batch), _broadcast(b, batch)
    others = [None if x is None else _broadcast(x, batch) for x in (c, *scales)]
    for index in np.ndindex(*batch):
        start, *factors = (None if x is None else array_memory.compact(x[index]) for x in others)
        x, y = array_memory.compact(left[index]), array_memory.compact(right[index])
        _core.mma_chain(x, y, start, d[index], fields, *factors)


def _broadcast(x: Memory, batch: tuple[int, ...]) -> Memory:
    return np.broadcast_to(x, (*batch, *x.shape[-2:]))


def _batch(a: Memory, b: Memory) -> tuple[int, ...]:
    try:
        shape: tuple[int, ...] = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return shape
    except ValueError:
        raise ValueError(
            f"a_codes {list(a.shape)} and b_codes {list(b.shape)}: leading dimensions do not broadcast"
        ) from None


def _memory(x: Any, argument: str, names: dict[str, str]) -> Memory:
    """The memory of `x` as unsigned integers; `names` maps the dtypes that it may have to theirs."""
    if not isinstance(x, np.ndarray) and not array_memory.is_tensor(x):
        raise TypeError(f"{argument} is a {type(x).__name__}: expected a NumPy array or a CPU tensor")
    name = array_memory.dtype_name(x.dtype)
    if name not in names:
        raise TypeError(f"{argument} has dtype {name}: expected {' or '.join(names)}")
    unsigned = names[name]
    if array_memory.is_tensor(x) and name != unsigned:
        x = x.detach().view(getattr(sys.modules["torch"], unsigned))
    memory = array_memory.memory_of(x, argument)
    return memory if memory.dtype.name == unsigned else memory.view(unsigned)


def _operand(x: Any, argument: str, fmt: str, model: MmaModel) -> Memory:
    codes = operand_dtype(fmt)
    own = "float32" if fmt == "tf32" else fmt
    memory = _memory(x, argument, {codes: codes, own: codes})
    if fmt not in ("tf32", "float64"):
        casting.check_codes(memory, formats.parse(fmt))
    return memory


def _accumulator(x: Any, argument: str, model: MmaModel) -> Memory:
    return _memory(x, argument, {model.accumulator: model.accumulator.replace("float", "uint")})


def _scales(x: Any, argument: str, model: MmaModel, operand: Memory) -> Memory | None:
    if model.scale_block is None or model.scale_format is None:
        if x is not None:
            raise ValueError(f"{argument}: {model} takes no scale factors; apply them after the product")
        return None
    if x is None:
        raise ValueError(
            f"{argument} is missing: {model} takes one {model.scale_format} for {model.scale_block} along K"
        )
    own = str(formats.parse(model.scale_format))
    memory = _memory(x, argument, {"uint8": "uint8", own: "uint8"})
    blocks = -(-operand.shape[-1] // model.scale_block)
    if memory.shape[-2:] != (operand.shape[-2], blocks):
        raise ValueError(f"{argument} has shape {list(memory.shape)}: expected [..., {operand.shape[-2]}, {blocks}]")
    return memory


def _empty(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    if array_memory.is_tensor(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return np.empty(shape, dtype)


def _check_out(target: Memory, shape: tuple[int, ...], a: Memory, b: Memory) -> None:
    if target.shape != shape:
        raise ValueError(f"out has shape {list(target.shape)}: expected {list(shape)}")
    if not target.flags.c_contiguous or not target.flags.aligned or not target.flags.writeable:
        raise ValueError("out is read-only, not aligned or not C-contiguous: pass a new array")
    if array_memory.may_overlap(target, a) or array_memory.may_overlap(target, b):
        raise ValueError("out overlaps an operand: pass memory of its own")
