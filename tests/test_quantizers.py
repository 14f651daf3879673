"""Quantizers with scale factors: codes and numbers against exact rationals, shapes, packing and files."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import fp8sim
from fp8sim import _core, casting, quantizers, scaling
from fp8sim.formats import FORMATS, Codebook, Format
from fp8sim.granularity import Granularity
from fp8sim.ops import quantize as ops
from fp8sim.packing import pack, unpack
from fp8sim.quantizers import ALIASES, QUANTIZERS, QuantizedTensor, Quantizer
from fp8sim.rounding import Overflow, Rounding
from fp8sim.simulate.matmul import GemmEvent, gemm, observe
from tests import scale_oracle
from tests.boundaries import each_isa


def small_blocks(quantizer: Quantizer) -> Quantizer:
    """The same quantizer with blocks that small tensors have several of, the last of them ragged."""
    assert quantizer.scale is not None
    rows, columns = (None if n is None else min(n, 3) for n in dataclasses.astuple(quantizer.scale.granularity))
    return with_scale(quantizer, granularity=Granularity(rows, columns))


def with_scale(quantizer: Quantizer, **changes: Any) -> Quantizer:
    assert quantizer.scale is not None
    return dataclasses.replace(quantizer, scale=dataclasses.replace(quantizer.scale, **changes))


def sample(shape: tuple[int, ...], seed: int = 0, spread: int = 8) -> NDArray[np.float32]:
    """Numbers of many magnitudes, ties of coarse formats among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-spread, spread + 1, shape))
    ties = rng.integers(-24, 25, shape) / 4 * np.exp2(rng.integers(-2, 3, shape))
    return np.where(rng.random(shape) < 0.3, ties, x).astype(np.float32)


SPECIALS = np.array(
    [
        [0.0, -0.0, 0.0, 1.0, -2.0, 3.0, 0.0],
        [np.inf, 1.0, -1.0, np.nan, 1.0, -0.0, 5.0],
        [-np.nan, 2.0**-149, -(2.0**-130), 2.0**-149, 2.0**-148, -np.inf, -np.inf],
        [3.4e38, -3.4e38, 1e-38, 2.0**-149, -(2.0**-149), 0.0, -0.0],
    ],
    np.float32,
)


def check(x: NDArray[np.float32], quantizer: Quantizer) -> None:
    """Codes, factors and dequantized numbers of `x` are those of the definition."""
    codes, factors = scale_oracle.quantize(x, quantizer)
    for _ in each_isa():
        actual = quantizer.quantize(x)
        assert actual.codes.tolist() == codes.tolist()
        for block, stored in factors.stored.items():
            expected = factors.codes.get(block, float(stored))
            assert np.array_equal(actual.scales[block], expected, equal_nan=True)
        if actual.tensor_scale is not None:
            assert np.array_equal(actual.tensor_scale, np.float32(float(factors.tensor)), equal_nan=True)
    numbers = np.zeros(x.shape, np.float32)
    for index in np.ndindex(x.shape):
        numbers[index] = scale_oracle.value(int(codes[index]), index, factors, quantizer)
    result = actual.dequantize()
    assert np.array_equal(result, numbers, equal_nan=True)
    assert np.array_equal(np.signbit(result), np.signbit(numbers))
    assert np.array_equal(quantizer(x), result, equal_nan=True)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_named_quantizers_are_their_definition(name: str) -> None:
    check(sample((5, 37)), QUANTIZERS[name])
    for fused in (False, True):
        quantizer = with_scale(small_blocks(QUANTIZERS[name]), fused=fused)
        check(sample((4, 10), seed=1), quantizer)
        check(sample((3, 5), seed=2, spread=100), quantizer)
        check(SPECIALS, quantizer)
        check(SPECIALS[:1], quantizer)
        check(np.zeros((2, 3), np.float32), quantizer)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nvfp4_te", "nvfp4_torchao", "fp8_tensor_te", "fp8_128x128_divide"])
@given(
    shape=st.lists(st.integers(0, 5), min_size=2, max_size=3).map(tuple),
    block=st.builds(Granularity, st.none() | st.integers(1, 4), st.none() | st.integers(1, 4)),
    rounding=st.sampled_from([mode for mode in Rounding if not mode.is_stochastic]),
    fused=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_block_and_rounding(
    name: str, shape: tuple[int, ...], block: Granularity, rounding: Rounding, fused: bool, seed: int
) -> None:
    quantizer = dataclasses.replace(QUANTIZERS[name], rounding=rounding)
    assert quantizer.scale is not None
    if quantizer.scale.order.has_two_levels and block.is_whole_tensor:
        block = Granularity(1, None)
    check(sample(shape, seed), with_scale(quantizer, granularity=block, fused=fused))


def test_rounding_the_product_first_differs_from_rounding_once() -> None:
    """Products so near to the ties of E4M3 that float32 rounds them onto the tie."""
    fmt, quantizer = FORMATS["float8_e4m3fn"], QUANTIZERS["fp8_tensor_te"]
    ties = [float(fmt.value(code) + fmt.value(code + 1)) / 2 for code in range(fmt.max_code)]
    scale = float(np.float32(448) / np.float32(5.1))
    x = np.array([5.1, *(tie / scale for tie in ties)], np.float32)
    once = with_scale(quantizer, fused=True)
    check(x, quantizer)
    check(x, once)
    assert (quantizer.quantize(x).codes != once.quantize(x).codes).sum() > 10


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["mxfp8", "nvfp4_te", "fp8_1x128"])
def test_other_dtypes_are_quantized_as_float32_and_restored(name: str, dtype: str) -> None:
    x = torch.from_numpy(sample((3, 40)))
    given = x.to(getattr(torch, dtype))
    quantized, wide = fp8sim.quantize(given, name), fp8sim.quantize(given.float(), name)
    assert torch.equal(quantized.codes, wide.codes)
    assert torch.equal(quantized.scales, wide.scales)
    assert quantized.dequantize().dtype == given.dtype
    assert torch.equal(quantized.dequantize(), wide.dequantize(torch.float64).to(given.dtype))
    assert torch.equal(quantizers.parse(name)(given), quantized.dequantize())


def test_float64_is_rounded_to_float32_first() -> None:
    x = np.array([1 + 2.0**-4 + 2.0**-40, 448.0])
    assert fp8sim.quantize(x, "mxfp8").dequantize()[0] == 1.0
    assert fp8sim.cast(x, "e4m3")[0] == 1.125
    assert fp8sim.quantize(np.array([1e300, 1.0]), "mxfp8").scales.tolist() == [0xFF]


def test_arrays_and_tensors_of_any_strides_agree() -> None:
    x = torch.from_numpy(sample((6, 70)))
    expected = fp8sim.quantize(x.numpy(), "nvfp4")
    for other in (x.mT.contiguous().mT, x.repeat_interleave(2, 1)[:, ::2], x.clone().requires_grad_()):
        actual = fp8sim.quantize(other, "nvfp4")
        assert np.array_equal(actual.codes.numpy(), expected.codes)
        assert np.array_equal(actual.scales.numpy(), expected.scales)
        assert np.array_equal(actual.dequantize().numpy(), expected.dequantize())
    assert isinstance(expected.dequantize(), np.ndarray)
    assert expected.dequantize(ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    assert fp8sim.quantize(x.numpy().astype(">f4"), "nvfp4").dequantize().dtype == np.float32


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_error_is_at_most_half_an_ulp_times_the_factor_where_nothing_saturates(name: str) -> None:
    x, quantizer = sample((8, 256), spread=3), QUANTIZERS[name]
    fmt, quantized = quantizer.format, QUANTIZERS[name].quantize(x)
    assert quantizer.scale is not None
    granularity = quantizer.scale.granularity
    factors = granularity.spread(quantized.scale_inv(), x.shape) * np.ones_like(granularity.split(x.astype(np.float64)))
    factor = granularity.join(factors, x.shape)
    scaled = np.abs(x) / factor
    ulp = np.exp2(np.maximum(np.floor(np.log2(np.maximum(scaled, 1e-30))), fmt.emin) - fmt.mantissa_bits)
    if isinstance(fmt, Codebook):
        ulp = np.full(x.shape, np.diff(fmt.levels).max())
    inside = scaled <= float(fmt.max) * (1 + 1e-6)
    error = np.abs(quantized.dequantize("float64") - x)
    assert inside.mean() > 0.9
    assert (error[inside] <= (ulp * factor * (0.5 + 1e-5))[inside]).all()


def test_results_do_not_depend_on_the_process_flushing_subnormals() -> None:
    x = torch.from_numpy(np.concatenate([SPECIALS, sample((5, 7), spread=140)]))
    expected = [fp8sim.quantize(x, name) for name in QUANTIZERS]
    numbers = [q.dequantize() for q in expected]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormals")
    try:
        actual = [fp8sim.quantize(x, name) for name in QUANTIZERS]
        again = [q.dequantize() for q in actual]
    finally:
        torch.set_flush_denormal(False)
    for ours, theirs in zip(actual, expected, strict=True):
        for a, b in zip(parts(ours), parts(theirs), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(again, numbers, strict=True))


# Special values


def test_an_mx_factor_of_nan_makes_its_block_nan_and_no_other() -> None:
    for name in ("mxfp8", "mxfp6_e2m3", "mxfp4"):
        for bad in (np.nan, np.inf, -np.inf):
            x = np.ones((2, 64), np.float32)
            x[1, 40] = bad
            quantized = fp8sim.quantize(x, name)
            assert quantized.scales[1].tolist() == [quantized.scales[0, 0], 0xFF]
            result = quantized.dequantize()
            assert np.isnan(result[1, 32:]).all()
            assert (result[0] == 1).all()
            assert (result[1, :32] == 1).all()


def test_zeros_keep_their_sign_and_stay_zero() -> None:
    x = torch.tensor([[0.0, -0.0] * 16] * 2)
    for name, quantizer in QUANTIZERS.items():
        if name == "nvfp4_torchao":  # 0 / 0, as in torchao
            assert quantizer(x).isnan().all()
        else:
            assert torch.equal(quantizer(x), x)
            assert torch.equal(quantizer(x).signbit(), x.signbit() & quantizer.format.has_negative_zero)


def test_empty_and_scalar_tensors() -> None:
    for name, quantizer in QUANTIZERS.items():
        for shape in ((0, 32), (3, 0), (0, 0), (2, 0, 5)):
            quantized = fp8sim.quantize(torch.zeros(shape), name)
            assert quantized.dequantize().shape == quantized.shape == shape
        assert quantizer.scale is not None
        if quantizer.scale.granularity.is_whole_tensor:
            assert fp8sim.quantize(torch.tensor(3.5), name).dequantize().item() == 3.5
        else:
            with pytest.raises(ValueError, match=r"x has shape \[\]: granularity .* takes . axes or more"):
                fp8sim.quantize(torch.tensor(3.5), name)
    with pytest.raises(ValueError, match=r"x has shape \[128\]: granularity 128x128 takes 2 axes"):
        fp8sim.quantize(torch.zeros(128), "fp8_128x128")


def test_bad_input_says_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="x is a list: expected a NumPy array"):
        fp8sim.quantize([1.0], "mxfp8")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x is torch.int64: expected torch.float32"):
        fp8sim.quantize(torch.arange(32), "mxfp8")
    with pytest.raises(ValueError, match="unknown format 'mxfp9'.*or one of the quantizers mxfp8_e4m3"):
        fp8sim.quantize(torch.zeros(32), "mxfp9")
    with fp8sim.use_backend("cuda"), pytest.raises(ValueError, match="quantize has no backend 'cuda'"):
        fp8sim.quantize(torch.zeros(32), "mxfp8")
    quantized = fp8sim.quantize(torch.zeros(2, 64), "mxfp8")
    with pytest.raises(TypeError, match="dtype='int8': use one of float32"):
        quantized.dequantize("int8")
    with pytest.raises(ValueError, match=r"scales have shape \[2, 2\]: codes \[2, 32\] need \[2, 1\]"):
        dataclasses.replace(quantized, codes=quantized.codes[:, :32])
    with pytest.raises(ValueError, match="scales is missing"):
        dataclasses.replace(quantized, scales=None)
    with pytest.raises(ValueError, match="tensor_scale is missing"):
        dataclasses.replace(quantized, quantizer=QUANTIZERS["nvfp4"])
    with pytest.raises(ValueError, match="has no scale factor"):
        fp8sim.quantize(torch.zeros(2), "e4m3").scale_inv()


# Names


@pytest.mark.parametrize("name", [*QUANTIZERS, *ALIASES])
def test_a_quantizer_is_its_name(name: str) -> None:
    quantizer = quantizers.parse(name)
    assert str(quantizer) == ALIASES.get(name, name)
    assert quantizers.parse(str(quantizer)) == quantizer
    other = dataclasses.replace(with_scale(quantizer, fused=True), overflow=Overflow.SAT_PROPAGATE)
    assert ":" in str(other)
    assert quantizers.parse(str(other)) == other


def test_recipes_take_quantizers_with_factors() -> None:
    recipe = fp8sim.recipes.uniform("mine", QUANTIZERS["mxfp8_e4m3"], QUANTIZERS["nvfp4"])
    assert fp8sim.recipes.parse(str(recipe)) == recipe


# Blocks in a GEMM


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "nvfp4", "fp8_1x128", "fp8_128x128", "fp8_row_torchao"])
def test_blocks_of_both_operands_run_along_the_contraction(name: str) -> None:
    quantizer = QUANTIZERS[name]
    events: list[GemmEvent] = []
    a, b = torch.from_numpy(sample((40, 150))), torch.from_numpy(sample((150, 30), seed=1))
    with observe(events.append):
        for left in (a, a.mT.contiguous().mT):
            for right in (b, b.mT.contiguous().mT):
                gemm(left, right, quantizers=(quantizer, quantizer))
    assert len(events) == 4
    for event in events:
        assert torch.equal(event.used[0], quantizer(a))
        assert torch.equal(event.used[1], quantizer(b.mT.contiguous()).mT)


def test_a_block_of_large_numbers_changes_only_the_products_it_shares_a_factor_with() -> None:
    """Ones beside a number of 2^20 vanish in E4M3 times its factor; those in other blocks and rows stay."""
    x, ones = torch.ones(2, 96), torch.ones(96, 3)
    x[1, 40] = 2.0**20
    result = gemm(x, ones, quantizers=(QUANTIZERS["mxfp8_e4m3"], None))
    assert result.tolist() == [[96.0] * 3, [2.0**20 + 64] * 3]
    result = gemm(ones.mT.contiguous(), x.mT, quantizers=(None, QUANTIZERS["mxfp8_e4m3"]))
    assert result.tolist() == [[96.0, 2.0**20 + 64]] * 3


# Packing and files


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_survives_packing(bits: int) -> None:
    codes = np.arange(1 << bits, dtype=np.uint8)
    for count in range(12):
        rows = np.stack([np.resize(np.roll(codes, i), count) for i in range(len(codes))])
        packed = pack(rows, bits)
        assert packed.shape == (len(codes), math.ceil(count * bits / 8))
        assert np.array_equal(unpack(packed, bits, count), rows)
        assert torch.equal(pack(torch.from_numpy(rows), bits), torch.from_numpy(packed))


def test_the_layout_of_packed_codes() -> None:
    assert pack(np.array([0x1, 0x2, 0xF], np.uint8), 4).tolist() == [0x21, 0x0F]
    four = np.array([0b000001, 0b000010, 0b000100, 0b111000], np.uint8)
    assert pack(four, 6).tolist() == [0b10_000001, 0b0100_0000, 0b111000_00]
    word = sum(int(code) << 6 * i for i, code in enumerate(four))
    assert bytes(pack(four, 6)) == word.to_bytes(3, "little")


def test_packing_refuses_what_it_cannot_pack() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[..., C\] and bits 1 to 8, got uint16"):
        pack(np.zeros(3, np.uint16), 4)
    with pytest.raises(ValueError, match="bits=9"):
        pack(np.zeros(3, np.uint8), 9)
    with pytest.raises(ValueError, match="packed has rows of 2 bytes: 5 codes of 4 bits take 3"):
        unpack(np.zeros(2, np.uint8), 4, 5)


def test_bytes_used() -> None:
    x = torch.zeros(4, 64)
    assert fp8sim.quantize(x, "mxfp8").nbytes == 4 * 64 + 4 * 2
    assert fp8sim.quantize(x, "mxfp6_e3m2").nbytes == 4 * 48 + 4 * 2
    assert fp8sim.quantize(x, "mxfp4").nbytes == 4 * 32 + 4 * 2
    assert fp8sim.quantize(x, "nvfp4").nbytes == 4 * 32 + 4 * 4 + 4
    assert fp8sim.quantize(x, "fp8_tensor_te").nbytes == 4 * 64 + 4
    assert fp8sim.quantize(x, "bf16").nbytes == 4 * 64 * 2


@pytest.mark.parametrize("name", [*QUANTIZERS, "e4m3", "e2m1", "bf16"])
def test_files_give_back_what_was_saved(name: str, tmp_path: Path) -> None:
    x = torch.from_numpy(sample((5, 37))).to(torch.bfloat16)
    saved = {"first.weight": fp8sim.quantize(x, name), "second": fp8sim.quantize(x.float().numpy(), name)}
    ops.save(tmp_path / "file.safetensors", saved)
    loaded = ops.load(tmp_path / "file.safetensors")
    assert list(loaded) == sorted(saved)
    for key, tensor in loaded.items():
        assert tensor.quantizer == saved[key].quantizer
        assert tensor.dtype == saved[key].dtype
        for ours, theirs in zip(parts(tensor), parts(saved[key]), strict=True):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        expected = torch.as_tensor(np.asarray(saved[key].dequantize("float64")))
        assert torch.equal(tensor.dequantize("float64"), expected)


def parts(tensor: QuantizedTensor) -> list[Any]:
    return [part for part in (tensor.codes, tensor.scales, tensor.tensor_scale) if part is not None]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("mxfp8", {"w": torch.float8_e4m3fn, "w_scale": torch.uint8}),
        ("mxfp4", {"w": torch.uint8, "w_scale": torch.uint8}),
        ("nvfp4", {"w": torch.uint8, "w_scale": torch.float8_e4m3fn, "w_scale_2": torch.float32}),
        ("fp8_128x128", {"w": torch.float8_e4m3fn, "w_scale_inv": torch.float32}),
        ("fp8_tensor_te_e5m2", {"w": torch.float8_e5m2, "w_scale_inv": torch.float32}),
        ("e5m2fnuz", {"w": torch.float8_e5m2fnuz}),
    ],
)
def test_names_and_dtypes_in_a_file(name: str, contents: dict[str, torch.dtype], tmp_path: Path) -> None:
    x = torch.from_numpy(sample((4, 64)))
    ops.save(tmp_path / "file.safetensors", {"w": fp8sim.quantize(x, name)})
    found = load_file(tmp_path / "file.safetensors")
    assert {key: tensor.dtype for key, tensor in found.items()} == contents
    if name == "fp8_128x128":
        assert torch.equal(found["w"].double() * found["w_scale_inv"].double(), quantizers.parse(name)(x.double()))


def test_files_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    quantized = fp8sim.quantize(torch.zeros(4, 64), "mxfp8")
    with pytest.raises(ValueError, match="another both become 'w_scale': rename one"):
        ops.save(tmp_path / "file.safetensors", {"w": quantized, "w_scale": quantized})
    save_file({"w": torch.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="has no tensor saved by"):
        ops.load(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_formats_without_factor_are_encoded_and_decoded(fmt: Format) -> None:
    x = torch.from_numpy(sample((3, 20))).abs()
    quantized = fp8sim.quantize(x, str(fmt))
    assert torch.equal(quantized.codes, fp8sim.encode(x, fmt))
    assert torch.equal(quantized.dequantize(), fp8sim.cast(x, fmt))


# Large tensors: units of work, threads, and what does not fit into one of them.

LARGE = {
    "mxfp8": [(7, 5000), (2, 3, 1030), (9000,), (300, 40)],
    "mxint8_rceil": [(40, 320), (1, 70000)],
    "nvfp4": [(70, 500), (4097,)],
    "nvfp4_te_16x16": [(70, 500), (2, 33, 90)],
    "fp8_128x128_divide": [(300, 260), (130, 9000)],
    "fp8_tensor_te": [(300, 1000), (5,)],
    "fp8_row_torchao": [(5, 9001), (300, 10)],
    "nf4": [(11, 5000)],
    "e4m3:TIES_TO_EVEN:SATURATE:column/AMAX/MULTIPLY/float32": [(300, 5000)],
    "bf16:TO_ODD:SATURATE:1x5000/AMAX/MULTIPLY/float32": [(3, 12000)],
    "tf32:TOWARD_ZERO:SATURATE:3x1/AMAX/DIVIDE/float32": [(8, 5000)],
}


def by_parts(x: NDArray[np.float32], quantizer: Quantizer, **random: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Codes and stored factors from the amax of NumPy, factors of whole arrays, and an encode of all products."""
    spec = quantizer.scale
    assert spec is not None
    blocks = spec.granularity.split(x)
    largest = np.abs(blocks).max(axis=(-1, -3)).astype(np.float32)
    factors = scaling.factors(largest.view(np.uint32), quantizer.format, spec)
    spread = factors.applied.reshape(*blocks.shape[:-3], 1, blocks.shape[-2], 1)
    with np.errstate(over="ignore"):  # where a factor is rounded down, the largest may overflow
        products = blocks / spread if spec.divides else blocks * spread
    codes = casting.encode(
        spec.granularity.join(products, x.shape), quantizer.format, rounding=quantizer.rounding, **random
    )
    return codes, factors.stored.reshape(spec.granularity.scale_shape(x.shape))


@pytest.mark.parametrize("name", LARGE)
def test_large_tensors_in_units_and_threads(name: str) -> None:
    quantizer, threads = quantizers.parse(name), _core.get_num_threads()
    for shape in LARGE[name]:
        x = sample(shape, seed=len(shape))
        codes, stored = by_parts(x, quantizer)
        for isa in each_isa():
            actual = quantizer.quantize(x)
            assert np.array_equal(actual.codes, codes), (isa, shape)
            assert np.array_equal(actual.scales, stored), (isa, shape)
    x = sample((2, 300, 513))
    _core.set_num_threads(1)
    try:
        alone = quantizer.quantize(x)
        _core.set_num_threads(3)
        assert np.array_equal(quantizer.quantize(x).codes, alone.codes)
        assert np.array_equal(quantizer.quantize(x).scales, alone.scales)
    finally:
        _core.set_num_threads(threads)


# Stochastic rounding.

STOCHASTIC = ["mxfp8_e4m3", "nvfp4_te", "nvfp4_te_16x16", "fp8_tensor_te", "fp8_128x128", "mxint8"]


@pytest.mark.parametrize("mode", [mode for mode in Rounding if mode.is_stochastic])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_codes_take_the_random_bits_of_their_place(name: str, mode: Rounding) -> None:
    quantizer = dataclasses.replace(QUANTIZERS[name], rounding=mode)
    random = {"seed": 2**63 + 5, "stream": 2**64 - 9, "offset": 2**64 - 777, "random_bits": 9 + mode}
    for shape in ((70, 130), (3, 5, 33)):
        x = sample(shape)
        codes, stored = by_parts(x, quantizer, **random)
        for isa in each_isa():
            actual = quantizer.quantize(x, **random)
            assert np.array_equal(actual.codes, codes), isa
            assert np.array_equal(actual.scales, stored), isa
    fused = with_scale(quantizer, fused=True)
    codes, stored = by_parts(x.astype(np.float64), fused, **random)
    actual = fused.quantize(x, **random)
    assert np.array_equal(actual.codes, codes)
    assert np.array_equal(actual.scales, stored)


def test_a_shard_is_quantized_as_its_part_of_the_whole() -> None:
    x = torch.from_numpy(sample((16, 64)))
    text = str(QUANTIZERS["mxfp8_e4m3"].scale)
    name = f"e4m3:STOCHASTIC:SATURATE:{text}"
    whole = fp8sim.quantize(x, name, seed=3, stream=4)
    part = fp8sim.quantize(x[5:], name, seed=3, stream=4, offset=5 * 64)
    assert torch.equal(part.codes, whole.codes[5:])
    assert not torch.equal(fp8sim.quantize(x, name, seed=3, stream=5).codes, whole.codes)
    assert torch.equal(quantizers.parse(name)(x, seed=3, stream=4), whole.dequantize())


def test_stochastic_quantization_is_unbiased() -> None:
    """The mean of 4096 quantizations lies within 5 sigma of x, and no single one is x."""
    x = np.full((4096, 16), 0.3, np.float32)
    x[:, 0] = 6.0
    name = f"e2m1:STOCHASTIC:SATURATE:{QUANTIZERS['nvfp4_te'].scale}"
    found = fp8sim.quantize(x, name, seed=1).dequantize()[:, 1:]
    assert set(np.unique(found)) == {0.0, 0.5}
    sigma = 0.5 * math.sqrt(0.6 * 0.4 / found.size)
    assert abs(found.mean() - 0.3) < 5 * sigma


def test_seeds_that_are_missing_or_unused_are_refused() -> None:
    x = np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match="rounding=STOCHASTIC needs random bits: pass seed="):
        fp8sim.quantize(x, "e4m3:STOCHASTIC")
    with pytest.raises(ValueError, match="rounding=STOCHASTIC needs random bits: pass seed="):
        fp8sim.quantize(x, f"e4m3:STOCHASTIC:SATURATE:{QUANTIZERS['mxfp8_e4m3'].scale}")
    with pytest.raises(ValueError, match="seed=1: rounding=TIES_TO_EVEN takes no random bits"):
        fp8sim.quantize(x, "mxfp8", seed=1)
    with pytest.raises(ValueError, match="seed=.*64 bits"):
        fp8sim.quantize(x, "e4m3:STOCHASTIC", seed=2**64)


def test_the_loops_refuse_what_does_not_fit() -> None:
    x, codes, stored = np.zeros((2, 32), np.uint32), np.zeros((2, 32), np.uint8), np.zeros((2, 1), np.uint8)
    quantizer = QUANTIZERS["mxfp8_e4m3"]
    assert quantizer.scale is not None
    scale = scaling.constants(quantizer.format, quantizer.scale)
    conversion, cuts = casting.loop_arguments(quantizer.format, quantizer.rounding, quantizer.overflow)
    good = {"source": x, "codes": codes, "stored": stored, "code_dtype": "uint8", "blocks": (1, 2, 32, 1, 32)}
    good |= {"scale": scale[0], "store": scale[1], "conversion": conversion, "cuts": cuts}
    assert _core.quantize(**good) == 1
    for change, message in (
        ({"blocks": (1, 2, 31, 1, 31)}, "blocks: expected outer, rows, columns"),
        ({"blocks": (1, 2, 32, 1, 64)}, "a block within them"),
        ({"blocks": (0, 2, 32, 1, 32)}, "blocks: expected"),
        ({"blocks": (1, 2, 32, 1, 16)}, "stored has 2 elements: expected 4"),
        ({"stored": np.zeros((2, 1), np.uint16)}, "stored has items of 2 bytes: expected uint8"),
        ({"codes": np.zeros((2, 33), np.uint8)}, "target has 66 elements: expected those of source, 64"),
        ({"source": x.view(np.uint64)}, "source has items of 8 bytes: expected uint32"),
        ({"cuts": np.zeros(256, np.float32)}, "cuts: expected 255 numbers at most"),
        ({"scale": scale[0]._replace(rule=6)}, "scale: expected what fp8sim.scaling.constants returns"),
        ({"scale": scale[0]._replace(max=math.nan)}, "scale: expected what"),
        ({"codes": x, "code_dtype": "uint32"}, "codes is source: pass memory of its own"),
        ({"random_bits": 0}, "random_bits=0"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.quantize(**good | change)
    with pytest.raises(ValueError, match="largest has 2 elements: expected 4"):
        _core.block_amax(x, np.zeros(2, np.uint32), (1, 2, 32, 1, 16))
    with pytest.raises(ValueError, match="applied has 3 elements: expected 4"):
        _core.scale_factors(np.zeros(4, np.uint32), np.zeros(4, np.uint32), np.zeros(3, np.uint32), *scale)


def test_nan_in_a_block_of_nf4_is_not_lost() -> None:
    x = np.ones((2, 64), np.float32)
    x[1, 3] = np.nan
    numbers = fp8sim.quantize(x, "nf4").dequantize()
    assert np.isnan(numbers[1]).all()
    assert (numbers[0] == 1).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mxfp8:", r"leave out its colon \('mxfp8'\)"),
        ("e2m1:STOCHASTIC:SATURATE:", r"leave out its colon \('e2m1:STOCHASTIC:SATURATE'\)"),
        ("e2m1::SATURATE", "a part is empty"),
        ("", "unknown format ''"),
        (":", "unknown format ''"),
    ],
)
def test_an_empty_part_of_a_text_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        quantizers.parse(text)


@pytest.mark.parametrize("given", [None, 3, ["mxfp8"]], ids=repr)
def test_what_is_no_text_names_no_quantizer(given: object) -> None:
    with pytest.raises(TypeError, match="expected a Quantizer or its text"):
        quantizers.parse(given)  # type: ignore[arg-type]


def test_masked_arrays_are_refused() -> None:
    x = np.ma.masked_array(np.ones((2, 32), np.float32))
    for quantizer in ("mxfp8", "nvfp4", "e4m3"):
        with pytest.raises(TypeError, match="x is a masked array, and its mask would be lost"):
            fp8sim.quantize(x, quantizer)
