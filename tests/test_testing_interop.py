"""Codes to and from ml_dtypes, JAX, torch and DLPack: every code of every format survives, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
import torch

from fp8sim import casting, interop
from fp8sim.formats import FORMATS, Format, Nan, parse

IN_ML_DTYPES = [name for name in FORMATS if hasattr(ml_dtypes, name)]
IN_TORCH = [name for name in FORMATS if name.startswith("float8") and hasattr(torch, name)]


def all_codes(name):
    fmt = parse(name)
    return np.arange(1 << fmt.bits).astype(casting.code_dtype(fmt))


class JaxLike:
    """An array that NumPy takes through `__array__`, as it takes JAX's."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize("name", IN_ML_DTYPES)
def test_ml_dtypes_holds_every_code(name):
    codes = all_codes(name)
    array = interop.to_ml_dtypes(codes, name)
    assert array.dtype == getattr(ml_dtypes, name)
    for x in (array, JaxLike(array), array[::-2].reshape(2, -1)):
        back, fmt = interop.from_ml_dtypes(x)
        assert fmt is FORMATS[name]
        expected = codes if not isinstance(x, np.ndarray) or x.ndim == 1 else codes[::-2].reshape(2, -1)
        np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("name", IN_ML_DTYPES)
def test_ml_dtypes_means_the_same_numbers(name):
    theirs = interop.to_ml_dtypes(all_codes(name), name).astype(np.float32)
    ours = casting.decode(all_codes(name), name)
    np.testing.assert_array_equal(theirs, ours)
    number = ~np.isnan(ours)
    np.testing.assert_array_equal(np.signbit(theirs[number]), np.signbit(ours[number]))


@pytest.mark.parametrize("name", IN_TORCH)
def test_torch_holds_every_code_and_means_the_same_numbers(name):
    codes = all_codes(name)
    for given in (codes, torch.from_numpy(codes), codes[::-1]):
        tensor = interop.to_torch_float8(given, name)
        assert tensor.dtype is getattr(torch, name)
        back, fmt = interop.from_torch_float8(tensor)
        assert fmt is FORMATS[name]
        np.testing.assert_array_equal(back.numpy(), given)
    values = interop.to_torch_float8(codes, name).float().numpy()
    np.testing.assert_array_equal(values, casting.decode(codes, name))


def test_a_format_is_found_by_what_it_is_not_by_its_label():
    mine = Format("mine", 4, 3, 7, Nan.ALL_ONES)
    assert interop.to_torch_float8(np.uint8([0x38]), mine).dtype is torch.float8_e4m3fn
    assert interop.to_ml_dtypes(np.uint8([0x38]), mine).dtype == ml_dtypes.float8_e4m3fn


def test_every_pair_of_float4_codes_survives_packing():
    codes = torch.arange(256, dtype=torch.uint8)
    pairs = torch.stack([codes & 15, codes >> 4], dim=1)
    packed = interop.pack_float4(pairs)
    assert packed.dtype is torch.float4_e2m1fn_x2
    assert packed.shape == (256, 1)
    np.testing.assert_array_equal(packed.view(torch.uint8)[:, 0], codes)  # the first of a pair in the low half
    for x in (packed, packed.view(torch.uint8)):
        back, fmt = interop.unpack_float4(x)
        assert fmt is FORMATS["float4_e2m1fn"]
        np.testing.assert_array_equal(back, pairs)
    assert interop.unpack_float4(interop.pack_float4(np.zeros((3, 0), np.uint8)))[0].shape == (3, 0)


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "bf16", "binary6p3se", "e2m3(bias=-3,nan=none,unsigned)"])
def test_dlpack_carries_integers_and_a_name(name):
    codes = all_codes(name)
    for given in (codes, torch.from_numpy(codes)):
        exported, text = interop.to_dlpack(given, name)
        np.testing.assert_array_equal(np.from_dlpack(exported), codes)
        back, fmt = interop.from_dlpack(exported, text)
        assert fmt == parse(name)
        np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: interop.to_ml_dtypes(np.uint8([1]), "binary8p4se"), ValueError, "ml_dtypes .* has .*float8_e4m3fn"),
        (lambda: interop.to_ml_dtypes(np.float32([1]), "e4m3"), TypeError, "codes have dtype float32: .* are uint8"),
        (lambda: interop.to_ml_dtypes(np.uint8([16]), "e2m1"), ValueError, "codes contain 0x10: .* 0 to 0xf"),
        (lambda: interop.from_ml_dtypes(np.arange(3)), TypeError, "dtype int64: expected a float dtype"),
        (lambda: interop.to_torch_float8(np.uint8([1]), "e3m4"), ValueError, "torch .* has .*send codes as integers"),
        (lambda: interop.to_torch_float8(np.uint16([1]), "bf16"), ValueError, "expected a format of 8 bits"),
        (lambda: interop.from_torch_float8(torch.ones(1)), TypeError, "x is float32: expected a tensor of a float8"),
        (lambda: interop.from_torch_float8(np.ones(1)), TypeError, "x is ndarray"),
        (lambda: interop.pack_float4(np.uint8([1, 2, 3])), ValueError, r"shape \[3\]: expected an even last"),
        (lambda: interop.pack_float4(np.uint8([1, 16])), ValueError, "codes contain 0x10"),
        (lambda: interop.unpack_float4(torch.ones(2)), TypeError, "packed is torch.float32"),
        (lambda: interop.unpack_float4(torch.tensor(1, dtype=torch.uint8)), ValueError, "no dimension"),
        (lambda: interop.to_dlpack(np.int32([1]), "e4m3"), TypeError, "dtype int32"),
        (lambda: interop.from_dlpack([1], "e4m3"), TypeError, "x is a list"),
        (lambda: interop.from_dlpack(np.uint8([1]), "e9m9"), ValueError, "unknown format"),
    ],
)
def test_errors_say_what_was_got_and_what_helps(call, error, message):
    with pytest.raises(error, match=message):
        call()
