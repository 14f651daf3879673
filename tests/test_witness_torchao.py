"""torchao's MX and NVFP4 quantization gives our scale factors and codes, but for differences written down here.

Skipped where torchao is not installed: `pip install --no-deps torchao==0.18.0`.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fp8sim import casting, packing
from fp8sim.quantizers import QUANTIZERS, Quantizer
from fp8sim.scaling import ScaleRule

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")

ELEMENTS = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "float6_e2m3fn": "fp6_e2m3",
    "float6_e3m2fn": "fp6_e3m2",
    "float4_e2m1fn": getattr(torch, "float4_e2m1fn_x2", None),
}
NAN_CODES = {"float6_e2m3fn": 0x0C, "float6_e3m2fn": 0x0E, "float4_e2m1fn": 0x03}
"""What its integer arithmetic makes of NaN in formats that have none; the sign is kept."""
MX = [name for name in QUANTIZERS if name.startswith("mxfp")]  # it has no MXINT8


@pytest.fixture(scope="module")
def torchao() -> Any:
    """Its modules for MX and NVFP4. Importing them warns of binary extensions, which nothing here needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.mx_formats import config, mx_tensor, nvfp4_tensor
    return {"config": config, "mx": mx_tensor, "nvfp4": nvfp4_tensor}


@dataclass(frozen=True)
class Difference:
    """Where torchao's blocks have another scale factor, or elements that were scaled by something else."""

    why: str
    rules: tuple[ScaleRule, ...]
    where: Callable[[Array, Array], Array]
    """Of amax and our scale codes, which blocks."""
    scale: Callable[[int], int] | None
    """Of the largest exponent of the format, its scale code there; None: ours."""
    divisor: Callable[[int], float]
    """Of the same, by what the elements there were divided."""


POWERS = (ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.EVEN)
RCEIL = (ScaleRule.RCEIL,)
DIFFERENCES = [
    Difference(
        "infinity has an exponent", POWERS, lambda a, s: np.isinf(a), lambda e: 255 - e, lambda e: 2.0 ** (128 - e)
    ),
    Difference("infinity gets the largest factor", RCEIL, lambda a, s: np.isinf(a), lambda e: 254, lambda e: 2.0**127),
    Difference("beside NaN all is zero", POWERS, lambda a, s: np.isnan(a), None, lambda e: np.inf),
    Difference("a NaN factor is NaN in every format", RCEIL, lambda a, s: np.isnan(a), None, lambda e: np.nan),
    Difference("2^-127 is replaced by 2^-126", POWERS, lambda a, s: s == 0, None, lambda e: 2.0**-126),
    Difference("2^-127 is replaced by 1", RCEIL, lambda a, s: s == 0, None, lambda e: 1.0),
]


def its_codes(x: Array, quantizer: Quantizer) -> Array:
    """The codes of scaled elements: where a format has no NaN, torchao's own for it."""
    fmt = quantizer.format
    codes = casting.encode(x, fmt)
    if fmt.name not in NAN_CODES:
        return codes
    nan = NAN_CODES[fmt.name] | np.where(np.signbit(x), fmt.sign_bit, 0)
    return np.where(np.isnan(x), nan, codes).astype(np.uint8)


def as_torchao(x: Array, quantizer: Quantizer) -> tuple[Array, Array]:
    """Our scale codes [R] and codes [R, 32] with its differences applied, each of which is one."""
    found = quantizer.quantize(x)
    scales, codes = found.scales.reshape(-1).copy(), found.codes.copy()
    amax, emax = np.max(np.abs(x), axis=-1), quantizer.format.emax
    assert quantizer.scale is not None
    for difference in DIFFERENCES:
        if quantizer.scale.rule not in difference.rules:
            continue
        where = difference.where(amax, found.scales.reshape(-1))
        with np.errstate(invalid="ignore"):
            codes[where] = its_codes(x[where].astype(np.float64) / difference.divisor(emax), quantizer)
        if difference.scale is not None:
            scales[where] = difference.scale(emax)
        same = (codes == found.codes).all() and (scales[where] == found.scales.reshape(-1)[where]).all()
        assert not same, f"no longer different: {difference.why}"
    return scales, codes


def blocks() -> Array:
    """[R, 32]: normal numbers, ties, all magnitudes, any bits at all, and blocks of special values."""
    random = np.random.default_rng(0)
    shape = (3000, 32)
    normal = random.standard_normal(shape) * np.exp2(random.integers(-8, 9, shape))
    ties = random.integers(-24, 25, shape) / 4 * np.exp2(random.integers(-2, 3, shape))
    magnitude = np.exp2(random.integers(-150, 120, (shape[0], 1)) * (random.random((shape[0], 1)) < 0.5))
    usual = np.clip(np.where(random.random(shape) < 0.4, ties, normal) * magnitude, -3.4e38, 3.4e38).astype(np.float32)
    anything = random.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    special = np.zeros((10, 32), np.float32)
    special[1:3, 3] = np.inf, -np.inf
    special[2, 4] = -1.0
    special[3, 3:5] = np.nan, 2.0
    special[4] = -np.nan
    special[5] = 2.0**-149
    special[6, 0] = 2.0**-127
    special[7, 0] = 2.0**-126
    special[8] = -0.0
    special[9] = np.linspace(-448, 448, 32)
    return np.concatenate([usual, np.where(np.isfinite(anything), anything, 1), special]).astype(np.float32)


@pytest.mark.parametrize("name", MX)
def test_mx(name: str, torchao: Any) -> None:
    quantizer = QUANTIZERS[name]
    assert quantizer.scale is not None
    rule = torchao["config"].ScaleCalculationMode[quantizer.scale.rule.name]
    x = blocks()
    scales, codes = torchao["mx"].to_mx(torch.from_numpy(x), ELEMENTS[quantizer.format.name], 32, rule)
    its = codes.view(torch.uint8).numpy()
    if quantizer.format.bits == 4:
        its = packing.unpack(its, 4, 32)
    expected_scales, expected_codes = as_torchao(x, quantizer)
    np.testing.assert_array_equal(scales.view(torch.uint8).numpy().reshape(-1), expected_scales)
    # The sign of NaN times NaN, which a NaN factor makes of NaN, is the processor's.
    either_sign = np.isnan(x) & (quantizer.scale.rule is ScaleRule.RCEIL)
    compared = np.where(either_sign, quantizer.format.sign_bit - 1, 0xFF)
    np.testing.assert_array_equal(its & compared, expected_codes & compared)


def test_every_element_that_torchao_knows_is_compared() -> None:
    assert {QUANTIZERS[name].format.name for name in MX} == set(ELEMENTS)
    assert all(
        QUANTIZERS[name].scale is not None and QUANTIZERS[name].scale.rule in (*POWERS, *RCEIL)  # type: ignore[union-attr]
        for name in MX
    )


def nvfp4(x: Array, torchao: Any) -> tuple[float, Array, Array]:
    """torchao's factor of the tensor, scale codes [R, C / 16] and codes [R, C]."""
    tensor = torch.from_numpy(x)
    factor = torchao["nvfp4"].per_tensor_amax_to_scale(tensor.abs().max())
    scales, codes = torchao["nvfp4"].nvfp4_quantize(tensor, 16, factor)
    shape = (len(x), x.shape[1] // 16)
    return (
        float(factor),
        scales.view(torch.uint8).numpy().reshape(shape),
        packing.unpack(codes.numpy(), 4, x.shape[1]),
    )


@pytest.mark.parametrize("largest", [2.0**-138, 1e-30, 1, 100, 3.4e38])
def test_nvfp4(largest: float, torchao: Any) -> None:
    finite = np.nan_to_num(blocks(), nan=1.0)
    x = np.clip(finite, -largest, largest).astype(np.float32)
    x[5] = largest
    factor, scales, codes = nvfp4(x, torchao)
    ours = QUANTIZERS["nvfp4_torchao"].quantize(x)
    assert factor == float(ours.tensor_scale)
    np.testing.assert_array_equal(scales, ours.scales)
    # What infinity makes of zero: here the largest number, there what its integers make of that NaN.
    is_nan = (x == 0) & (factor < 2.0**-128)
    assert is_nan.any() == (largest < 1e-30)
    np.testing.assert_array_equal(codes[is_nan] & 7, NAN_CODES["float4_e2m1fn"])
    np.testing.assert_array_equal(ours.codes[is_nan], 7)
    np.testing.assert_array_equal(codes[~is_nan], ours.codes[~is_nan])


def test_nvfp4_of_zeros_is_nan(torchao: Any) -> None:
    x = np.zeros((2, 32), np.float32)
    factor, scales, _ = nvfp4(x, torchao)
    ours = QUANTIZERS["nvfp4_torchao"].quantize(x)
    assert factor == float(ours.tensor_scale) == 0
    assert np.isnan(casting.decode(scales, "e4m3")).all()
    assert np.isnan(casting.decode(ours.scales, "e4m3")).all()
