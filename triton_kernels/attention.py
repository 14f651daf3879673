"""Fused attention of FP16, bfloat16 or FP8 on tensor cores: the forward pass.

Every launch follows a `fp8sim.mma.AttentionPlan` (`plan_of`), by which `fp8sim.simulate.attention` predicts the codes
of the probabilities, and every bit of the result where exponentials are exact. On Hopper FP8 is multiplied by FP8
instructions, probabilities included. For GPUs without them (compute capability 8.0 to 8.8) query, key and value are
widened to float16 in memory first; probabilities are rounded to FP8 there, too, and multiplied as float16.

Bytes moved at least: those of query, key, value and output once, and 4 per row of queries; each tile of queries reads
its keys and values again, from the cache where that holds them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fp8sim import mma
from fp8sim.formats import FORMATS
from fp8sim.mma.attention import AttentionPlan, Denominator, base2_scale, default_plan
from fp8sim.mma.attention import parse as parse_plan
from fp8sim.mma.plans import GemmPlan
from fp8sim.rounding import Conversion, Overflow, Rounding, resolve
from fp8sim.triton_kernels import interpreter, tuning
from fp8sim.triton_kernels import matmul as products
from fp8sim.triton_kernels.attention_configs import Config, Kind, checked, configs, offered
from fp8sim.triton_kernels.attention_kernel import attention_kernel
from fp8sim.triton_kernels.attention_values import transposed_values
from fp8sim.triton_kernels.launching import require_device
from fp8sim.triton_kernels.matmul import HOPPER, Capability

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_FLOAT16 = (torch.float16, torch.bfloat16)
_ADA = (8, 9)
_TRITON_TYPES = {
    "float8_e4m3fn": tl.float8e4nv,
    "float8_e5m2": tl.float8e5,
    "float16": tl.float16,
    "bfloat16": tl.bfloat16,
}
_LARGEST_STRIDE = 1 << 24
"""Elements between two rows at most: those of a tile are counted in 32 bits."""

LARGEST_HEAD = 256
"""Features of a head at most."""


_INTERPRETED_QUERIES = 256
"""Few, large programs: the interpreter takes milliseconds for each whatever its size."""


def plan_of(
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    capability: Capability,
    width: int,
    plan: str | AttentionPlan | None = None,
) -> AttentionPlan:
    """The plan that `attention` follows, its instructions included, by which the simulator predicts its bits.

    Args:
        dtypes: of query, key and value.
        capability: of the device.
        width: features of a head, the larger of those of keys and values.
        plan: the plan that is wanted; None: one for the dtypes, which uses E4M3's range for FP8.

    Raises:
        ValueError: the kernel does not follow the plan there, or no order of additions is known for the device; the
            message says what it follows.
    """
    added = [products.plan_of(dtype, capability) for dtype in (dtypes[0], dtypes[2])]
    choices = configs(Kind(dtypes[2].itemsize, capability, width))
    blocks = sorted({config.block_n for config in choices})
    formats = _p_formats(dtypes[2])
    default = _default_plan(dtypes[2], choices[0].block_n, added)
    if plan is None:
        return default
    wanted = parse_plan(plan)
    natural = default.p_overflow
    problems = {
        f"block={wanted.block}": (wanted.block in blocks, f"block={' or '.join(map(str, blocks))}"),
        f"p_format={wanted.p_format}": (wanted.p_format in formats, f"p_format={' or '.join(formats)}"),
        f"p_overflow={wanted.p_overflow.name}": (
            not wanted.clamps or wanted.p_overflow is natural,
            f"p_overflow={natural.name} where a probability can exceed the format",
        ),
        f"logits={wanted.logits}": (_adds_alike(wanted.logits, added[0], dtypes[:2]), f"logits={added[0]}"),
        f"mixed={wanted.mixed}": (
            wanted.p_format not in formats or _adds_alike(wanted.mixed, added[1], (wanted.p_format, dtypes[2])),
            f"mixed={added[1]}",
        ),
    }
    wrong = {got: expected for got, (is_right, expected) in problems.items() if not is_right}
    if wrong:
        raise ValueError(
            f"plan='{wanted}': the Triton kernel does not follow {', '.join(wrong)} on compute capability "
            f"{capability[0]}.{capability[1]} with {_name(dtypes[2])} values of width {width}, where it has "
            f"{', '.join(wrong.values())}; it follows '{default}', or simulate on the CPU, under "
            f"use_backend('simulate')"
        )
    return wanted


def _p_formats(value: torch.dtype) -> list[str]:
    """What probabilities can be cast to: they are multiplied with the values."""
    return [_name(dtype) for dtype in _FLOAT8] if value in _FLOAT8 else [_name(value)]


def _default_plan(value: torch.dtype, block: int, added: list[GemmPlan]) -> AttentionPlan:
    return dataclasses.replace(default_plan(_name(value)), block=block, logits=added[0], mixed=added[1])


def _adds_alike(wanted: GemmPlan, offered: GemmPlan, operands: tuple[Any, Any]) -> bool:
    """Whether two plans are one for operands of these formats, an instruction's full name aside."""
    names = [operand if isinstance(operand, str) else _name(operand) for operand in operands]
    try:
        complete = [dataclasses.replace(x, instruction=str(mma.resolve(x, *names))) for x in (wanted, offered)]
    except ValueError:
        return False
    return complete[0] == complete[1]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    plan: str | AttentionPlan | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    window: int | None = None,
    lower_right: bool = False,
    query_scale_inv: float = 1.0,
    key_scale_inv: float = 1.0,
    value_scale_inv: float = 1.0,
    output_factor: float = 1.0,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """output_factor * softmax(scale * query @ key^T) @ value, as `plan_of` says, and its denominators' logarithms.

    Args:
        query: [B, H, L, D], float8_e4m3fn, float8_e5m2, float16 or bfloat16, any strides, D up to 256, on a CUDA device
            or, in the interpreter, on the CPU. An operand whose features are not contiguous, or whose rows do not start
            at multiples of 16 bytes, is copied first, and so are FP8 values where the configuration `transposes`.
        key: [B, G, S, D]. value: [B, G, S, E], E up to 256. G divides H: each key and value serves H / G queries. All
            three are FP8, in any mix, or have one dtype.
        plan: an `AttentionPlan`, a name of `fp8sim.mma.ATTENTION_PLANS` or its text, which the kernel must be able to
            follow on this device; None: `plan_of`'s.
        scale: on the logits, positive; None: D^-1/2.
        is_causal: query i sees keys 0 .. i.
        window: query i sees keys i - window + 1 .. i.
        lower_right: for both, query i stands at key i + S - L instead of i, so that the last query sees the last key.
        query_scale_inv, key_scale_inv, value_scale_inv: factors of the operands. They and the scale are multiplied in
            binary64 and rounded to float32 once.
        output_factor: multiplies the output, together with the factor of the values, in float32.
        cu_seqlens_q: [N + 1] int32 on the device: N sequences are packed in L, with B = 1; sequence n is rows
            cu_seqlens_q[n] .. cu_seqlens_q[n + 1] - 1. Rows of no sequence are 0.
        cu_seqlens_k: likewise for keys and values; both or neither. Positions above count from a sequence's own first
            query and key.
        dtype: of the output: float32, float16 or bfloat16; None: that of the query, or bfloat16 for FP8.
        config: tile of queries, warps, stages, order; its block_n must be the plan's block. None: that of `tuning.use`,
            by default one of `attention_configs.configs` for the number of queries. With packed sequences it neither
            `transposes` nor `overlaps`.

    Returns:
        output [B, H, L, E], and lse [B, H, L] float32: log2 of the sum over the keys that a query sees of
        2^(log2(e) * scale * factors * q k), as the plan's denominator adds it, the plan's offset removed. Rows that see
        no key have output 0 and lse +inf. NaN and infinities propagate as in the plan's equations. Deterministic.

    Raises:
        TypeError: a dtype that has no kernel.
        ValueError: shapes, a plan or devices that do not fit.
        RuntimeError: no kernel runs on the device: it needs compute capability 8.0 (Ampere) or later.
    """
    require_device("query", query)
    _require_operands(query, key, value, window, dtype)
    packed = _packed(query, cu_seqlens_q, cu_seqlens_k)
    batch, heads, length, width = query.shape
    scale = width**-0.5 if scale is None else scale
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale={scale}: must be positive and finite")
    capability = products.capability_of(query)
    features = value.shape[-1]
    order = plan_of((query.dtype, key.dtype, value.dtype), capability, max(width, features), plan)
    dtype = dtype or (query.dtype if query.dtype in _FLOAT16 else torch.bfloat16)
    make = torch.empty if packed is None else torch.zeros
    out = make((batch, heads, length, features), dtype=dtype, device=query.device)
    lse = torch.empty((batch, heads, length), dtype=torch.float32, device=query.device)
    if packed is not None:
        lse.fill_(math.inf)
    if lse.numel() == 0:
        return out, lse
    if key.shape[2] == 0 or out.numel() == 0:
        return out.zero_(), lse.fill_(math.inf)
    launch = _Launch(
        operands=(query, key, value),
        out=out,
        lse=lse,
        packed=packed,
        causal=is_causal or window is not None,
        window=window,
        lower_right=lower_right,
        base2=base2_scale(scale, query_scale_inv, key_scale_inv),
        factor=value_scale_inv * output_factor,
        plan=order,
        capability=capability,
    )
    with torch.cuda.device_of(query):
        launch.run(launch.config(config))
    return out, lse


class _Packed(NamedTuple):
    """Where packed sequences begin."""

    queries: torch.Tensor
    keys: torch.Tensor
    sequences: int


class _Cast(NamedTuple):
    """How the kernel sees probabilities; `attention_kernel` describes the parts."""

    type: Any
    to: Conversion | None


@dataclass(frozen=True)
class _Launch:
    """Everything that a launch passes to the kernel."""

    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Query, key and value."""
    out: torch.Tensor
    lse: torch.Tensor
    packed: _Packed | None
    causal: bool
    window: int | None
    lower_right: bool
    base2: float
    factor: float
    plan: AttentionPlan
    capability: Capability

    def config(self, given: Config | None) -> Config:
        """The configuration to run: the given one, the one that `tuning` has, or the default."""
        if given is not None:
            return checked(given, self.plan.block, packed=self.packed is not None)
        query, key, value = self.operands
        length, width = query.shape[2], max(query.shape[3], value.shape[3])
        kind = Kind(value.element_size(), self.capability, width, self.packed is not None)
        choices = offered(kind, self.plan.block, length, self.causal)
        if interpreter.is_enabled():
            choices[0] = dataclasses.replace(choices[0], block_m=_INTERPRETED_QUERIES)
        options = {
            "q": query.dtype,
            "k": key.dtype,
            "v": value.dtype,
            "block": self.plan.block,
            "causal": self.causal,
            "windowed": self.window is not None,
            "packed": self.packed is not None,
        }
        shape = query.shape[0] * query.shape[1], length, key.shape[2], query.shape[3], value.shape[3]
        return tuning.pick("attention", query.device, options, shape, choices, self.run)

    def run(self, config: Config) -> None:
        """Launch one program for each tile of queries of each head."""
        plan = self.plan
        query, key, value = self._multiplied()
        operands = _aligned(query), _aligned(key), transposed_values(value) if config.transposes else _aligned(value)
        width, keys = query.shape[3], key.shape[2]
        batch, heads, length, features = self.out.shape
        padded = max(triton.next_power_of_2(width), 32), max(triton.next_power_of_2(features), 32)
        cast = _cast(plan, self.capability)
        tiles = triton.cdiv(length, config.block_m)
        sequences = 0
        starts: tuple[torch.Tensor | None, torch.Tensor | None] = None, None
        if self.packed is not None:
            # Each sequence may leave its last tile half empty.
            sequences, starts = self.packed.sequences, (self.packed.queries, self.packed.keys)
            tiles += sequences
        arguments: tuple[Any, ...] = operands
        if config.descriptors:
            v_block = (padded[1], config.block_n) if config.transposes else (config.block_n, padded[1])
            blocks = (config.block_m, padded[0]), (config.block_n, padded[0]), v_block
            arguments = tuple(_descriptor(x, *block) for x, block in zip(arguments, blocks, strict=True))
        strides = [stride for x in operands for stride in x.stride()[:3]]
        attention_kernel[(tiles * heads * batch,)](
            *arguments, self.out, self.lse, *starts, sequences, heads, key.shape[1], length, keys,
            *strides, self.window or 0, self.base2, plan.p_offset, plan.rescale_above, self.factor,
            P_TYPE=cast.type, P_TO=cast.to,
            D=width, E=features, CAUSAL=self.causal, WINDOWED=self.window is not None,
            LOWER_RIGHT=self.lower_right, RAGGED=self.packed is not None or keys % config.block_n != 0,
            DESCENDING=plan.descending, LAGS=plan.rescale_above > 0,
            SUMS_CAST=plan.denominator is Denominator.AFTER, RECIPROCAL=plan.reciprocal,
            LOADS=config.descriptors, V_TRANSPOSED=config.transposes, OVERLAPS=config.overlaps,
            HEADS_AT_ONCE=config.heads_at_once,
            SEQUENCES=triton.next_power_of_2(sequences) if sequences else 1,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_D=padded[0], BLOCK_E=padded[1],
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    def _multiplied(self) -> Iterator[torch.Tensor]:
        """The operands as the instructions multiply them."""
        for x in self.operands:
            x = x.detach()
            yield x.to(torch.float16) if x.dtype in _FLOAT8 and self.capability < _ADA else x


def _cast(plan: AttentionPlan, capability: Capability) -> _Cast:
    """How probabilities are cast: by the GPU, to FP8 from Hopper on (Ada rounds twice), or by float32's addition."""
    dtype = _TRITON_TYPES[plan.p_format]
    if plan.p_format in ("float16", "bfloat16") or capability >= HOPPER:
        return _Cast(dtype, None)
    to = resolve(FORMATS[plan.p_format], Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    return _Cast(dtype if capability >= _ADA else tl.float16, to)


def _descriptor(x: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), _strides(x), [1, 1, rows, columns])


def _strides(x: torch.Tensor) -> list[int]:
    """Strides of x, those of a single index replaced by what a descriptor takes."""
    whole = 16 * triton.cdiv(x.shape[-1], 16)
    outer = [stride if size > 1 else whole for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True)]
    return [*outer, 1]


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """x [B, H, R, C] with contiguous rows that start at multiples of 16 bytes, as fast loads need: x or a copy."""
    unit = 16 // x.element_size()
    moving = [stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    fits = all(stride > 0 and stride % unit == 0 for stride in moving) and x.data_ptr() % 16 == 0
    if fits and x.stride(-2) < _LARGEST_STRIDE and (x.stride(-1) == 1 or x.shape[-1] == 1):
        return x
    *outer, columns = x.shape
    copy = torch.empty(*outer, unit * triton.cdiv(columns, unit), dtype=x.dtype, device=x.device)[..., :columns]
    return copy.copy_(x)


def _packed(query: torch.Tensor, queries: torch.Tensor | None, keys: torch.Tensor | None) -> _Packed | None:
    if queries is None and keys is None:
        return None
    if queries is None or keys is None or query.shape[0] != 1:
        raise ValueError(
            f"packed sequences need cu_seqlens_q, cu_seqlens_k and a query [1, H, T, D], got "
            f"{_shape(queries)}, {_shape(keys)} and {list(query.shape)}"
        )
    for name, starts in (("cu_seqlens_q", queries), ("cu_seqlens_k", keys)):
        fits = starts.ndim == 1 and starts.shape == queries.shape and len(starts) > 1 and starts.dtype == torch.int32
        if not fits or starts.device != query.device:
            raise ValueError(
                f"{name} must be [N + 1] int32 on {query.device}, as many for queries and keys, got "
                f"{_shape(starts)} {starts.dtype} on {starts.device}"
            )
    return _Packed(queries.contiguous(), keys.contiguous(), len(queries) - 1)


def _shape(x: torch.Tensor | None) -> str:
    return "None" if x is None else str(list(x.shape))


def _require_operands(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, dtype: torch.dtype | None
) -> None:
    named = (("query", query), ("key", key), ("value", value))
    for name, x in named:
        if not isinstance(x, torch.Tensor) or x.dtype not in (*_FLOAT8, *_FLOAT16):
            got = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"{name} must be a tensor of float8_e4m3fn, float8_e5m2, float16 or bfloat16, got {got}")
        if x.device != query.device:
            raise ValueError(f"{name} must be on the query's device {query.device}, got {x.device}")
    dtypes = [x.dtype for _, x in named]
    if len(set(dtypes)) > 1 and not set(dtypes) <= set(_FLOAT8):
        raise TypeError(f"query, key and value must all be FP8, or of one dtype, got {dtypes}: cast them")
    shapes = [list(x.shape) for _, x in named]
    fits = all(len(shape) == 4 for shape in shapes) and shapes[0][3] == shapes[1][3] and shapes[1][:3] == shapes[2][:3]
    if not fits or shapes[0][0] != shapes[1][0] or shapes[1][1] == 0 or shapes[0][1] % shapes[1][1]:
        raise ValueError(
            f"expected query [B, H, L, D], key [B, G, S, D] and value [B, G, S, E], G dividing H, got {shapes}"
        )
    if not (1 <= shapes[0][3] <= LARGEST_HEAD and shapes[2][3] <= LARGEST_HEAD):
        raise ValueError(
            f"heads have 1 to {LARGEST_HEAD} features in the Triton kernel, got {shapes}: simulate on the CPU, under "
            f"use_backend('simulate')"
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a number of keys, 1 or more, or None")
    if dtype not in (None, torch.float32, *_FLOAT16):
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    capability = products.capability_of(query)
    if capability < (8, 0):
        raise RuntimeError(
            f"attention needs compute capability 8.0 or later (Ampere), and {query.device} has "
            f"{capability[0]}.{capability[1]}: simulate on the CPU, with fp8sim.use_backend('simulate')"
        )
