"""`quantize` for NumPy arrays and torch tensors, and quantized tensors in safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fp8sim import array_memory, backends, casting, quantizers
from fp8sim.arguments import check_tensor_of
from fp8sim.ops.cast import random_arguments, random_options
from fp8sim.ops.library import register
from fp8sim.packing import unpack
from fp8sim.quantizers import QuantizedTensor, Quantizer
from fp8sim.scaling import FLOAT32

_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_METADATA = "fp8sim:"


def _impl(
    x: torch.Tensor,
    text: str,
    seed: torch.Tensor | None,
    stream: int,
    offset: int,
    random_bits: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    quantizer = quantizers.parse(text)
    found = backends.row("quantize", backend).load()(x, quantizer, **random_options(seed, stream, offset, random_bits))
    scales = x.new_empty(0, dtype=_scale_dtype(quantizer)) if found.scales is None else found.scales
    whole = x.new_empty(0, dtype=torch.float32) if found.tensor_scale is None else found.tensor_scale
    return found.codes, scales, whole


def _fake(x: torch.Tensor, text: str, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    quantizer = quantizers.parse(text)
    spec = quantizer.scale
    shape = (0,) if spec is None else spec.granularity.scale_shape(tuple(x.shape))
    two_levels = spec is not None and spec.order.has_two_levels
    return (
        torch.empty(x.shape, dtype=getattr(torch, casting.code_dtype(quantizer.format)), device=x.device),
        torch.empty(shape, dtype=_scale_dtype(quantizer), device=x.device),
        torch.empty(() if two_levels else 0, dtype=torch.float32, device=x.device),
    )


def _scale_dtype(quantizer: Quantizer) -> torch.dtype:
    is_float = quantizer.scale is None or quantizer.scale.store == FLOAT32
    return torch.float32 if is_float else torch.uint8


_op = register(
    "quantize(Tensor x, str quantizer, Tensor? seed, int stream, int offset, int random_bits, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)


def quantize(
    x: np.ndarray[Any, Any] | torch.Tensor,
    quantizer: str | Quantizer,
    *,
    seed: int | torch.Tensor | None = None,
    stream: int = 0,
    offset: int = 0,
    random_bits: int = 32,
) -> QuantizedTensor:
    """Scale and encode x; `.dequantize()` goes back.

    Args:
        x: [...], a NumPy array or torch tensor of float32, float64, float16 or bfloat16; a CUDA tensor is quantized by
            the Triton kernel, bit for bit as a CPU tensor. A block's columns run along the last axis; the last block of
            an axis holds what remains.
        quantizer: a `Quantizer` or its text: "mxfp8", "nvfp4", "fp8_1x128", ... (`fp8sim.quantizers.QUANTIZERS`), or a
            format for no scale factor.
        seed, stream, offset, random_bits: as for `fp8sim.cast`, if the quantizer's mode is stochastic, as that of
            "e2m1:STOCHASTIC" is. Elements are counted in row-major order.

    Returns:
        Codes and scale factors, of the kind of `x` and on its device, without gradient. Special values as
        `Quantizer.quantize` and the quantizer's scale rule say.

    Raises:
        ValueError: an unknown quantizer, too few axes, a seed that is missing or unused, stream, offset or random_bits
            without one, a backend without the operation, a codebook (NF4) on another backend than "simulate".
        TypeError: not an array or tensor of these dtypes, a masked array, a seed that is no integer.
    """
    parsed = quantizers.parse(quantizer)
    if not isinstance(x, torch.Tensor):
        row = backends.row("quantize", backends.select("quantize", "cpu"))
        found: QuantizedTensor = row.load()(x, parsed, seed=seed, stream=stream, offset=offset, random_bits=random_bits)
        return found
    check_tensor_of("x", x)
    backend = backends.select("quantize", x.device.type)
    rest = random_arguments(parsed.rounding, seed, stream, offset, random_bits)
    codes, scales, whole = _op(x.detach(), str(parsed), *rest, backend)
    two_levels = parsed.scale is not None and parsed.scale.order.has_two_levels
    name = array_memory.dtype_name(x.dtype)
    return QuantizedTensor(codes, None if parsed.scale is None else scales, parsed, name, whole if two_levels else None)


def save(path: str | Path, tensors: Mapping[str, QuantizedTensor]) -> None:
    """Write quantized tensors to a safetensors file.

    A tensor NAME becomes: NAME, its codes, with FP8 codes as that dtype and those below 8 bits packed
    (`QuantizedTensor.packed`); NAME_scale_inv, its factors if they are float32, else NAME_scale, their codes (E4M3 as
    that dtype, E8M0 as bytes); NAME_scale_2, the factor of the tensor. All of them multiply codes. The file's metadata
    has the quantizer, shape and dtype of each as JSON under "fp8sim:NAME".

    Raises:
        ValueError: two tensors would have the same name.
    """
    from safetensors.torch import save_file

    parts: dict[str, torch.Tensor] = {}
    metadata = {}
    for name, quantized in tensors.items():
        for part, tensor in _to_parts(name, quantized).items():
            if part in parts:
                raise ValueError(f"tensors[{name!r}] and another both become {part!r}: rename one")
            parts[part] = tensor
        facts = {"quantizer": str(quantized.quantizer), "shape": list(quantized.shape), "dtype": quantized.dtype}
        metadata[_METADATA + name] = json.dumps(facts)
    save_file(parts, str(path), metadata)


def load(path: str | Path) -> dict[str, QuantizedTensor]:
    """The quantized tensors, as torch tensors, of a safetensors file that `save` wrote, sorted by name.

    Other tensors in the file are left out.

    Raises:
        ValueError: the file holds no quantized tensor, or parts that do not fit.
    """
    import safetensors

    with safetensors.safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        names = sorted(key.removeprefix(_METADATA) for key in metadata if key.startswith(_METADATA))
        if not names:
            raise ValueError(f"{path} has no tensor saved by fp8sim.ops.quantize.save: read it with safetensors")
        return {name: _from_parts(name, file, json.loads(metadata[_METADATA + name])) for name in names}


def _to_parts(name: str, quantized: QuantizedTensor) -> dict[str, torch.Tensor]:
    quantizer = quantized.quantizer
    parts = {name: _stored(quantized.packed() if quantized.shape else quantized.codes, str(quantizer.format))}
    if quantizer.scale is not None:
        parts[name + _suffix(quantizer)] = _stored(quantized.scales, str(quantizer.scale.store))
    if quantized.tensor_scale is not None:
        parts[f"{name}_scale_2"] = _stored(quantized.tensor_scale, str(FLOAT32))
    return parts


def _suffix(quantizer: Quantizer) -> str:
    return "_scale_inv" if quantizer.scale is not None and quantizer.scale.store == FLOAT32 else "_scale"


def _stored(part: Any, fmt: str) -> torch.Tensor:
    """A tensor of its own memory; codes of an FP8 format that torch and safetensors know, as that dtype."""
    tensor = torch.tensor(part) if isinstance(part, np.ndarray) else part.detach().clone().contiguous()
    return tensor.view(getattr(torch, fmt)) if fmt in _FLOAT8 else tensor


def _from_parts(name: str, file: Any, facts: dict[str, Any]) -> QuantizedTensor:
    quantizer, shape = quantizers.parse(facts["quantizer"]), tuple(facts["shape"])
    bits = quantizer.format.bits
    codes = _plain(file.get_tensor(name))
    if bits < 8 and shape:
        codes = unpack(codes, bits, shape[-1])
    if tuple(codes.shape) != shape:
        raise ValueError(f"{name} has codes of shape {list(codes.shape)}: the file's metadata says {list(shape)}")
    scale = None if quantizer.scale is None else _plain(file.get_tensor(name + _suffix(quantizer)))
    two = quantizer.scale is not None and quantizer.scale.order.has_two_levels
    tensor_scale = file.get_tensor(f"{name}_scale_2") if two else None
    return QuantizedTensor(codes, scale, quantizer, facts["dtype"], tensor_scale)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """FP8 dtypes as bytes."""
    return tensor.view(torch.uint8) if str(tensor.dtype).removeprefix("torch.") in _FLOAT8 else tensor
