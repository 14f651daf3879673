"""Presets give the codes of torch, ml_dtypes and NVIDIA's header, bit for bit, on every kind of input."""

from typing import Any

import ml_dtypes
import numpy as np
import nvidia_header
import oracle
import pytest
import torch
from boundaries import FLOATS, assert_same_codes, bits_of, boundaries, widened

import fp8sim
from fp8sim import casting
from fp8sim.formats import FORMATS, Format, parse
from fp8sim.presets import PRESETS
from fp8sim.rounding import Overflow, Rounding

Array = np.ndarray[Any, Any]
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
TORCH_PRESET = "torch" if TORCH >= (2, 12) else "torch_before_2.12"
ROWS = [(preset, name) for preset, table in PRESETS.items() for name in table]
HEADER_NAMES = {"float8_e4m3fn": "fp8e4nv", "float8_e5m2": "fp8e5", "float16": "fp16", "bfloat16": "bf16"}


# Rows whose NaN is no function of the number: torch's bfloat16 depends on where in a tensor it stands, float16 keeps
# a payload. There the codes of NaN are compared as NaN.
ANY_NAN = {("torch", "float16"), ("torch", "bfloat16"), ("ml_dtypes", "float16")}


def header_name(preset: str, name: str) -> str:
    """What `nvidia_header` calls the conversion."""
    mode, nosat = preset[4:6], "" if preset.endswith("satfinite") else "_nosat"
    if FORMATS[name].bits == 16:
        return HEADER_NAMES[name] + ("" if mode == "rn" else f"_{mode}")
    if name in HEADER_NAMES:
        return HEADER_NAMES[name] + nosat
    short = name.split("_")[1].removesuffix("fnu").removesuffix("fn")
    return f"{short}_{mode}{nosat if short == 'e8m0' else ''}"


def of_header(preset: str, name: str, x: Array, source: str) -> Array:
    """The codes that NVIDIA's header gives; skips where there is none.

    float16 and bfloat16 it has without satfinite; saturating first comes to the same, since the largest number is kept.
    """
    if FORMATS[name].bits == 16 and preset.endswith("satfinite"):
        largest = np.float32(FORMATS[name].max)
        x = np.clip(x, -largest, largest)
    try:
        return nvidia_header.convert(bits_of(x), source, header_name(preset, name))
    except FileNotFoundError as error:
        pytest.skip(str(error))


def of_the_isa(preset: str, x: Array) -> Array:
    """tf32, for which there is no witness but the text of PTX: rounding and overflow by definition, one NaN."""
    mode = {"rn": Rounding.TIES_TO_EVEN, "rna": Rounding.TIES_TO_AWAY, "rz": Rounding.TOWARD_ZERO}[preset.split(".")[1]]
    overflow = Overflow.SATURATE if preset.endswith("satfinite") else Overflow.INFINITY
    codes = oracle.encode_array(widened(x), FORMATS["tf32"], mode, overflow)
    return np.where(np.isnan(x), 0x3FFFF, codes)


def theirs(preset: str, name: str, x: Array) -> Array:
    """The codes that the library itself gives; skips where it is not the one installed."""
    code_type = casting.code_dtype(FORMATS[name])
    if preset == TORCH_PRESET:
        words = torch.int16 if code_type == "uint16" else torch.uint8
        return torch.from_numpy(x).to(getattr(torch, name)).view(words).numpy().view(code_type)
    if preset == "ml_dtypes":
        with np.errstate(all="ignore"):
            return x.astype(getattr(ml_dtypes, name, name)).view(code_type)
    if preset.startswith("torch"):
        pytest.skip(f"torch {torch.__version__} has the other policy")
    return of_the_isa(preset, x) if name == "tf32" else of_header(preset, name, x, "fp32")


def one_nan(codes: Array, fmt: Format) -> Array:
    """`codes` with every NaN the same."""
    magnitude = codes & (fmt.sign_bit - 1)
    return np.where(magnitude > fmt.inf_code, fmt.nan_code, codes)


def patterns(count: int) -> Array:
    """An even sample of all binary32 patterns, and everything within 2 of a multiple of 2^17."""
    sample = np.arange(count, dtype=np.uint32) * np.uint32(2**32 // count)
    edges = (np.arange(2**15, dtype=np.uint32) << np.uint32(17))[:, None] + np.arange(-2, 3).astype(np.uint32)
    return np.concatenate([sample, edges.ravel()]).view(np.float32)


def check_preset(preset: str, name: str, x: Array) -> None:
    codes, expected = casting.encode(x, name, preset=preset), theirs(preset, name, x)
    if (preset, name) in ANY_NAN:
        codes, expected = one_nan(codes, FORMATS[name]), one_nan(expected, FORMATS[name])
    assert_same_codes(codes, expected, x, f"{preset} {name}")


@pytest.mark.parametrize(("preset", "name"), ROWS)
def test_a_preset_gives_the_codes_of_the_library(preset: str, name: str) -> None:
    for x in (boundaries(FORMATS[name], "float32"), patterns(2**14)):
        check_preset(preset, name, x)


@pytest.mark.full
@pytest.mark.parametrize(("preset", "name"), ROWS)
def test_a_preset_gives_the_codes_of_the_library_on_an_even_sample(preset: str, name: str) -> None:
    check_preset(preset, name, patterns(2**24))


@pytest.mark.parametrize(("preset", "name"), [(p, n) for p, n in ROWS if p.startswith("cvt") and FORMATS[n].bits <= 8])
def test_float64_is_rounded_once_as_in_the_header(preset: str, name: str) -> None:
    """NaN apart, of which the header's binary64 functions keep sign and payload, unlike its others."""
    x = boundaries(FORMATS[name], "float64")
    x = x[~np.isnan(x)]
    assert_same_codes(casting.encode(x, name, preset=preset), of_header(preset, name, x, "fp64"), x, f"{preset} {name}")


# The table of what libraries do beyond the largest number: +x, -x of a finite number, infinity and NaN.

CELLS = {
    ("torch", "e4m3"): (0x7E, 0xFE, 0x7E, 0xFE, 0x7F, 0xFF),
    ("torch_before_2.12", "e4m3"): (0x7F, 0xFF, 0x7F, 0xFF, 0x7F, 0xFF),
    ("ml_dtypes", "e4m3"): (0x7F, 0xFF, 0x7F, 0xFF, 0x7F, 0xFF),
    ("cvt.rn.satfinite", "e4m3"): (0x7E, 0xFE, 0x7E, 0xFE, 0x7F, 0x7F),
    ("cvt.rn", "e4m3"): (0x7F, 0xFF, 0x7F, 0xFF, 0x7F, 0x7F),
    ("torch", "e5m2"): (0x7C, 0xFC, 0x7C, 0xFC, 0x7F, 0xFF),
    ("torch_before_2.12", "e5m2"): (0x7C, 0xFC, 0x7C, 0xFC, 0x7F, 0xFF),
    ("ml_dtypes", "e5m2"): (0x7C, 0xFC, 0x7C, 0xFC, 0x7E, 0xFE),
    ("cvt.rn.satfinite", "e5m2"): (0x7B, 0xFB, 0x7B, 0xFB, 0x7F, 0x7F),
    ("cvt.rn", "e5m2"): (0x7C, 0xFC, 0x7C, 0xFC, 0x7F, 0x7F),
    ("torch", "e4m3fnuz"): (0x80,) * 6,
    ("ml_dtypes", "e4m3fnuz"): (0x80,) * 6,
    ("ml_dtypes", "e4m3b11fnuz"): (0x80,) * 6,
    ("torch", "e5m2fnuz"): (0x80,) * 6,
    ("ml_dtypes", "e5m2fnuz"): (0x80,) * 6,
    ("ml_dtypes", "float8_e4m3"): (0x78, 0xF8, 0x78, 0xF8, 0x7C, 0xFC),
    ("ml_dtypes", "float8_e3m4"): (0x70, 0xF0, 0x70, 0xF0, 0x78, 0xF8),
    ("ml_dtypes", "e2m3"): (0x1F, 0x3F, 0x1F, 0x3F, 0x20, 0x00),
    ("ml_dtypes", "e3m2"): (0x1F, 0x3F, 0x1F, 0x3F, 0x20, 0x00),
    ("ml_dtypes", "e2m1"): (0x07, 0x0F, 0x07, 0x0F, 0x08, 0x00),
    ("cvt.rn.satfinite", "e2m3"): (0x1F, 0x3F, 0x1F, 0x3F, 0x1F, 0x1F),
    ("cvt.rn.satfinite", "e3m2"): (0x1F, 0x3F, 0x1F, 0x3F, 0x1F, 0x1F),
    ("cvt.rn.satfinite", "e2m1"): (0x07, 0x0F, 0x07, 0x0F, 0x07, 0x07),
    ("torch", "fp16"): (0x7C00, 0xFC00, 0x7C00, 0xFC00, 0x7E00, 0xFE00),
    ("torch", "bf16"): (0x7F78, 0xFF78, 0x7F80, 0xFF80, 0x7FC0, 0x7FC0),
    ("ml_dtypes", "fp16"): (0x7C00, 0xFC00, 0x7C00, 0xFC00, 0x7E00, 0xFE00),
    ("ml_dtypes", "bf16"): (0x7F78, 0xFF78, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0),
    ("cvt.rn", "fp16"): (0x7C00, 0xFC00, 0x7C00, 0xFC00, 0x7FFF, 0x7FFF),
    ("cvt.rz", "fp16"): (0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7FFF, 0x7FFF),
    ("cvt.rm", "fp16"): (0x7BFF, 0xFC00, 0x7C00, 0xFC00, 0x7FFF, 0x7FFF),
    ("cvt.rp", "fp16"): (0x7C00, 0xFBFF, 0x7C00, 0xFC00, 0x7FFF, 0x7FFF),
    ("cvt.rn.satfinite", "fp16"): (0x7BFF, 0xFBFF, 0x7BFF, 0xFBFF, 0x7FFF, 0x7FFF),
    ("cvt.rz.satfinite", "bf16"): (0x7F78, 0xFF78, 0x7F7F, 0xFF7F, 0x7FFF, 0x7FFF),
    ("cvt.rna", "tf32"): (0x3FBC2, 0x7FBC2, 0x3FC00, 0x7FC00, 0x3FFFF, 0x3FFFF),
    ("cvt.rna.satfinite", "tf32"): (0x3FBC2, 0x7FBC2, 0x3FBFF, 0x7FBFF, 0x3FFFF, 0x3FFFF),
    ("torch", "e8m0"): (0xFF,) * 6,
    ("ml_dtypes", "e8m0"): (0xFF,) * 6,
    ("cvt.rz", "e8m0"): (0xFE, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF),
    ("cvt.rp", "e8m0"): (0xFF,) * 6,
    ("cvt.rz.satfinite", "e8m0"): (0xFE, 0xFE, 0xFE, 0xFE, 0xFF, 0xFF),
    ("cvt.rp.satfinite", "e8m0"): (0xFE, 0xFE, 0xFE, 0xFE, 0xFF, 0xFF),
}


@pytest.mark.parametrize(("preset", "name"), CELLS)
def test_what_becomes_of_overflow_infinity_and_nan(preset: str, name: str) -> None:
    large = np.float32(3.3e38)
    x = np.array([large, -large, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    assert casting.encode(x, name, preset=preset).tolist() == list(CELLS[preset, name])


def test_nan_where_it_is_no_function_of_the_number() -> None:
    """What the presets say of these NaN is true somewhere: without payload, and of torch's scalar code."""
    x = np.array([np.nan, -np.nan], np.float32)
    for preset in (TORCH_PRESET, "ml_dtypes"):
        assert_same_codes(casting.encode(x, "fp16", preset=preset), theirs(preset, "float16", x), x, preset)
    strided = torch.from_numpy(np.repeat(x, 2))[::2].to(torch.bfloat16).view(torch.int16).numpy()
    assert_same_codes(casting.encode(x, "bf16", preset=TORCH_PRESET), strided.view(np.uint16), x, "bfloat16")


def test_tf32_ties_go_away_as_in_machine_code() -> None:
    """On Ampere `cvt.rna.tf32` is an addition and a mask, which numbers and infinities agree with and NaN do not."""
    x = patterns(2**20)  # every 2^12: all ties
    x = x[~np.isnan(x)]
    added = (bits_of(x) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    assert_same_codes(casting.encode(x, "tf32", preset="cvt.rna"), added >> np.uint32(13), x, "cvt.rna")


# Numbers: what the library's code stands for.


@pytest.mark.parametrize(("preset", "name"), ROWS)
def test_casting_by_a_preset_is_the_round_trip(preset: str, name: str) -> None:
    for dtype in FLOATS:
        x = boundaries(FORMATS[name], dtype)
        x = x[:: x.size // 20_000 + 1]
        expected = bits_of(casting.decode(casting.encode(x, name, preset=preset), name, dtype=dtype))
        assert_same_codes(bits_of(casting.cast(x, name, preset=preset)), expected, x, f"{preset} {name} {dtype}")
        strided, out = x[::-2], np.empty((x[::-2].size, 2), x.dtype)[:, 0]
        assert casting.cast(strided, name, preset=preset, out=out) is out
        assert_same_codes(bits_of(np.ascontiguousarray(out)), expected[::-2], strided, f"{preset} {name} out")
        casting.cast(x, name, preset=preset, out=x)
        assert_same_codes(bits_of(x), expected, x, f"{preset} {name} in place")


@pytest.mark.parametrize(("preset", "name"), [row for row in ROWS if row[0] in (TORCH_PRESET, "ml_dtypes")])
def test_casting_by_a_preset_gives_the_numbers_of_the_library(preset: str, name: str) -> None:
    x = patterns(2**14)
    with np.errstate(all="ignore"):
        if preset == "ml_dtypes":
            expected = x.astype(getattr(ml_dtypes, name, name)).astype(np.float32)
        else:
            expected = torch.from_numpy(x).to(getattr(torch, name)).float().numpy()
    found = casting.cast(x, name, preset=preset)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    assert_same_codes(bits_of(found)[~nan], bits_of(expected)[~nan], x[~nan], f"{preset} {name}")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch's own tracer
def test_casting_a_tensor_by_a_preset() -> None:
    x = torch.tensor([1.1, 1e6, float("inf"), -3e-9], requires_grad=True)
    y = fp8sim.cast(x, "e4m3", preset="cvt.rn")
    assert torch.equal(y.isnan(), torch.tensor([False, True, True, False]))
    assert torch.equal(y[[0, 3]], fp8sim.cast(x, "e4m3")[[0, 3]])
    y[0].backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0, 0, 0]
    compiled = torch.compile(lambda t: fp8sim.cast(t, "e4m3", preset="torch"), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x.detach()), fp8sim.cast(x, "e4m3", preset="torch"))
    out = torch.empty(4)
    assert fp8sim.cast(x.detach(), "e4m3", preset="torch", out=out) is out
    assert torch.equal(out, compiled(x.detach()))


OCP = {  # of saturating and other conversions; the sign of NaN is not fixed there
    ("SATURATE", "e4m3"): (448, -448, 448, -448, np.nan),
    ("SATURATE", "e5m2"): (57344, -57344, 57344, -57344, np.nan),
    ("INFINITY", "e4m3"): (np.nan,) * 5,
    ("INFINITY", "e5m2"): (np.inf, -np.inf, np.inf, -np.inf, np.nan),
}


@pytest.mark.parametrize(("overflow", "name"), OCP)
def test_overflow_of_the_ocp_formats_and_of_gfloat(overflow: str, name: str) -> None:
    x = np.array([1e6, -1e6, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(casting.cast(x, name, overflow=overflow), OCP[overflow, name])
    known = pytest.importorskip("gfloat.formats")
    import gfloat

    info = {"e4m3": known.format_info_ocp_e4m3, "e5m2": known.format_info_ocp_e5m2}[name]
    with np.errstate(all="ignore"):
        theirs = gfloat.round_ndarray(info, x, gfloat.RoundMode.TiesToEven, sat=overflow == "SATURATE")
    np.testing.assert_array_equal(theirs, OCP[overflow, name])


@pytest.mark.parametrize("preset", [preset for preset, name in CELLS if name == "e4m3"])
def test_ties_beyond_the_largest_number(preset: str) -> None:
    """464 is a tie that all round down to 448; 61440 one that goes up, which is overflow."""
    overflow = {name: CELLS[preset, name][0] for name in ("e4m3", "e5m2")}
    for name, tie, expected in (
        ("e4m3", 464, [0x7E, 0x7E, overflow["e4m3"]]),
        ("e5m2", 61440, [0x7B, overflow["e5m2"], overflow["e5m2"]]),
    ):
        x = np.nextafter(np.float32([tie] * 3), np.float32([0, tie, np.inf]))
        assert casting.encode(x, name, preset=preset).tolist() == expected


E8M0 = {
    # 0, -0, 2^-128, 2^-127, just above it, 1.5 * 2^-127, 1, just above it, 1.5, 3, -1.5
    "torch": (0, 0, 0, 0, 1, 1, 127, 127, 128, 129, 128),
    "ml_dtypes": (255, 255, 0, 0, 1, 1, 127, 127, 128, 129, 255),
    "cvt.rz": (0, 0, 0, 0, 0, 0, 127, 127, 127, 128, 127),
    "cvt.rp": (0, 0, 0, 0, 1, 1, 127, 128, 128, 129, 128),
}


@pytest.mark.parametrize("preset", E8M0)
def test_e8m0_zero_ties_signs_and_subnormals(preset: str) -> None:
    half = np.float32(2.0**-127)
    above_half, above_one = np.nextafter(half, np.float32(1)), np.nextafter(np.float32(1), np.float32(2))
    x = np.array([0.0, -0.0, half / 2, half, above_half, 1.5 * half, 1, above_one, 1.5, 3, -1.5], np.float32)
    assert casting.encode(x, "e8m0", preset=preset).tolist() == list(E8M0[preset])


# Kinds of arrays.


@pytest.mark.parametrize(("preset", "name"), [("torch", "e8m0"), ("ml_dtypes", "e5m2"), ("cvt.rn", "e4m3")])
def test_every_kind_of_array_gives_the_same(preset: str, name: str) -> None:
    x = boundaries(parse(name), "float16")
    expected = casting.encode(x.astype(np.float32), name, preset=preset)
    assert_same_codes(casting.encode(x, name, preset=preset), expected, x, "float16")
    assert_same_codes(casting.encode(x.astype(">f2"), name, preset=preset), expected, x, "big-endian")
    assert_same_codes(casting.encode(x.astype(np.float64), name, preset=preset), expected, x, "float64")
    tensor = torch.from_numpy(x)
    assert_same_codes(fp8sim.encode(tensor, name, preset=preset).numpy(), expected, x, "tensor")
    assert_same_codes(fp8sim.encode(tensor.flip(0), name, preset=preset).numpy()[::-1], expected, x, "flipped")
    short = tensor.bfloat16()
    expected = fp8sim.encode(short.float(), name, preset=preset)
    assert torch.equal(fp8sim.encode(short, name, preset=preset), expected)
    compiled = torch.compile(lambda t: fp8sim.encode(t, name, preset=preset), backend="eager", fullgraph=True)
    assert torch.equal(compiled(short), expected)


X = np.ones(4, np.float32)
MISUSES = {
    "preset='numpy': use one of torch, ": lambda: casting.encode(X, "e4m3", preset="numpy"),
    "preset='torch' says nothing of float4_e2m1fn: it has": lambda: fp8sim.encode(X, "e2m1", preset="torch"),
    "preset='torch' decides rounding and overflow": lambda: casting.encode(
        X, "e4m3", preset="torch", overflow="INFINITY"
    ),
    "preset='torch' decides .*: drop seed=$": lambda: fp8sim.encode(torch.ones(2), "e4m3", preset="torch", seed=3),
    "preset='torch' .*: drop rounding=, stream=, random_bits=$": lambda: fp8sim.cast(
        X, "e4m3", preset="torch", rounding="TO_ODD", stream=1, random_bits=8
    ),
    "preset='cvt.rn' .*: drop offset=$": lambda: fp8sim.cast(torch.ones(2), "e4m3", preset="cvt.rn", offset=1),
    "preset='cvt.rna' says nothing of bfloat16: it has tf32": lambda: casting.cast(X, "bf16", preset="cvt.rna"),
}


@pytest.mark.parametrize("message", MISUSES)
def test_misuse_is_a_clear_error(message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        MISUSES[message]()


def test_a_preset_runs_on_the_simulator_alone() -> None:
    with fp8sim.use_backend("triton"), pytest.raises(ValueError, match="preset='torch' needs the simulator"):
        fp8sim.encode(torch.ones(3), "e4m3", preset="torch")
    with fp8sim.use_backend("triton"), pytest.raises(ValueError, match="preset='torch' needs the simulator"):
        fp8sim.cast(torch.ones(3), "e4m3", preset="torch", out=torch.empty(3))
