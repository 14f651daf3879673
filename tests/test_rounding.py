"""Every format of at most 8 bits, mode, policy, source dtype and instruction set against the definition."""

import itertools
from fractions import Fraction

import numpy as np
import oracle
import pytest
import torch
from boundaries import (
    CODEBOOKS,
    FIXED,
    FLOATS,
    MODES,
    NARROW,
    ODD,
    P3109_NARROW,
    assert_same_codes,
    bits_of,
    boundaries,
    decoded,
    policies,
    random_integers,
    widened,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fp8sim import _core, casting, codebooks
from fp8sim.formats import Codebook, Format, Nan, p3109, parse
from fp8sim.rounding import NO_CODE, Conversion, Overflow, Rounding, member, resolve

STREAM = {"seed": 2**63 + 11, "stream": 2**64 - 3, "offset": 2**64 - 1000}


def arguments_for(mode: Rounding, random_bits: int = 32) -> dict[str, int]:
    return {**STREAM, "random_bits": random_bits} if mode.is_stochastic else {}


# The definition for arrays is the rational one.


def check_array_oracle(fmt: Format, mode: Rounding, overflow: Overflow, x: np.ndarray, bits: int) -> None:
    random = random_integers(x.size, {**STREAM, "random_bits": bits})
    found = oracle.encode_array(x, fmt, mode, overflow, random, bits)
    expected = [
        oracle.encode(value, fmt, mode, overflow, int(r), bits) for value, r in zip(x.tolist(), random, strict=True)
    ]
    assert_same_codes(found, np.array(expected, np.uint32), x, f"{fmt} {mode.name} {overflow.name}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "fmt",
    [
        parse("e2m1"),
        parse("e8m0"),
        p3109(4, 1),
        p3109(4, 2, extended=False),
        p3109(4, 3, signed=False),
        *ODD[:3],
        *FIXED[2:6],
    ],
    ids=str,
)
def test_the_array_oracle_is_the_rational_one(fmt: Format, mode: Rounding) -> None:
    for overflow, dtype in itertools.product(policies(fmt), ("float32", "float64")):
        x = widened(boundaries(fmt, dtype))
        check_array_oracle(fmt, mode, overflow, x[:: x.size // 160 + 1], bits=5)


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [*NARROW, *P3109_NARROW, *ODD], ids=str)
def test_the_array_oracle_is_the_rational_one_everywhere(fmt: Format, mode: Rounding) -> None:
    for overflow in policies(fmt):
        check_array_oracle(fmt, mode, overflow, widened(boundaries(fmt, "float32")), bits=32)


# The loops are the definition.


def check_loops(fmt: Format, mode: Rounding, overflow: Overflow, dtype: str, random_bits: int = 32) -> None:
    x = boundaries(fmt, dtype)
    keywords = {"rounding": mode, "overflow": overflow, **arguments_for(mode, random_bits)}
    random = random_integers(x.size, arguments_for(mode, random_bits)) if mode.is_stochastic else 0
    expected = oracle.encode_array(widened(x), fmt, mode, overflow, random, random_bits)
    for isa in _core.isas():
        _core.set_isa(isa)
        what = f"{fmt} {mode.name} {overflow.name} {dtype} {isa}"
        assert_same_codes(casting.encode(x, fmt, **keywords), expected, x, what)
        found = bits_of(casting.cast(x, fmt, **keywords))
        assert_same_codes(found, decoded(fmt, dtype)[expected], x, f"cast {what}")


QUICK = [
    *NARROW,
    *ODD,
    *FIXED,
    p3109(8, 1),
    p3109(8, 4),
    p3109(8, 3, extended=False),
    p3109(8, 5, signed=False),
    p3109(3, 1),
]


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", QUICK, ids=str)
def test_every_mode_and_policy(fmt: Format, dtype: str) -> None:
    for mode, overflow in itertools.product(MODES, policies(fmt)):
        check_loops(fmt, mode, overflow, dtype)


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("random_bits", [1, 2, 7, 8, 13, 16, 23, 24, 25, 31])
def test_every_count_of_random_bits(random_bits: int) -> None:
    modes = [mode for mode in MODES if mode.is_stochastic]
    names = ("e4m3", "e2m1", "e8m0", "binary8p3sf", "bf16")
    for mode, name, dtype in itertools.product(modes, names, ("float32", "float64")):
        fmt = parse(name)
        x = boundaries(fmt, dtype)[::9] if fmt.bits > 8 else boundaries(fmt, dtype)
        random = random_integers(x.size, arguments_for(mode, random_bits))
        expected = oracle.encode_array(widened(x), fmt, mode, Overflow.SATURATE, random, random_bits)
        for isa in _core.isas():
            _core.set_isa(isa)
            codes = casting.encode(x, fmt, rounding=mode, **arguments_for(mode, random_bits))
            assert_same_codes(codes, expected, x, f"{fmt} {mode.name} N={random_bits} {dtype} {isa}")


@pytest.mark.full
@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("fmt", P3109_NARROW, ids=str)
def test_every_p3109_format(fmt: Format) -> None:
    for mode, overflow, dtype in itertools.product(MODES, policies(fmt), FLOATS):
        check_loops(fmt, mode, overflow, dtype)


# Codebooks.


def around_levels(fmt: Codebook, dtype: str) -> np.ndarray:
    """Levels and midpoints as `dtype` rounds them, what lies beside those, and specials."""
    levels = np.array(fmt.levels)
    centres = np.concatenate([levels, levels[1:] / 2 + levels[:-1] / 2, [0.0, 1e9, 2.0**-149]])
    with np.errstate(all="ignore"):
        centres = centres.astype(FLOATS[dtype])
        steps = [np.nextafter(centres, centres.dtype.type(way)) for way in (-np.inf, np.inf)]
    specials = np.array([np.inf, -np.inf, np.nan, -np.nan, -0.0]).astype(FLOATS[dtype])
    return np.concatenate([centres, *steps, specials])


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CODEBOOKS, ids=lambda fmt: fmt.name)
def test_the_closest_level_of_a_codebook(fmt: Codebook, dtype: str) -> None:
    x, levels = around_levels(fmt, dtype), [Fraction(level) for level in fmt.levels]
    for mode in codebooks.TIES:
        expected = np.array([oracle.encode_to_codebook(float(number), levels, mode) for number in widened(x)], np.uint8)
        numbers = casting.decode(expected, fmt, dtype=dtype)
        for isa in _core.isas():
            _core.set_isa(isa)
            assert_same_codes(casting.encode(x, fmt, rounding=mode), expected, x, f"{fmt} {mode.name} {dtype} {isa}")
            for start in range(x.size):
                assert casting.encode(x[start:], fmt, rounding=mode).tolist() == expected[start:].tolist()
            assert casting.cast(x, fmt, rounding=mode).tobytes() == numbers.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", CODEBOOKS, ids=lambda fmt: fmt.name)
def test_codes_of_a_codebook_are_its_levels(fmt: Codebook, dtype: str) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(fmt.levels).astype(FLOATS[dtype])
    codes = np.array([list(fmt.codes)] * 3, np.uint8).T
    assert casting.decode(codes, fmt, dtype=dtype).tolist() == [[level] * 3 for level in expected.tolist()]
    assert casting.decode(torch.from_numpy(codes), fmt).dtype == torch.float32


def test_a_tie_between_levels_and_what_lies_beside_one() -> None:
    """Float32 has the middle of 0.5626 and 0.7230, and for that of 0.7230 and 1 a number above it."""
    levels = [np.float32(level) for level in parse("nf4").levels]  # type: ignore[attr-defined]
    ties = np.array([(levels[13] + levels[14]) / 2, (levels[14] + levels[15]) / 2], np.float32)
    codes = {mode.name: casting.encode(ties, "nf4", rounding=mode).tolist() for mode in codebooks.TIES}
    assert codes == {"TIES_TO_EVEN": [14, 15], "TIES_TO_AWAY": [14, 15], "TIES_TO_ZERO": [13, 15]}


def test_what_a_codebook_cannot_do_is_refused() -> None:
    x = np.zeros(3, np.float32)
    with pytest.raises(
        ValueError, match="rounding=TOWARD_ZERO: normalfloat4 is a codebook and takes the closest level"
    ):
        casting.cast(x, "nf4", rounding="TOWARD_ZERO")
    with pytest.raises(ValueError, match="overflow=NAN needs an infinity or NaN, and normalfloat4 has neither"):
        casting.encode(x, "nf4", overflow="NAN")
    with pytest.raises(ValueError, match="codes contain 0x10: the codes of normalfloat4 are 0 to 0xf"):
        casting.decode(np.full(3, 16, np.uint8), "nf4")
    with pytest.raises(ValueError, match=r"codebook, which no kernel takes: .* fp8sim.use_backend\('simulate'\)"):
        resolve(parse("nf4"), Rounding.TIES_TO_EVEN, Overflow.SATURATE)
    with pytest.raises(ValueError, match="cuts has 256 numbers: expected 255 at most"):
        _core.encode_levels(x, np.zeros(3, np.uint8), "float32", np.zeros(256, np.float32))
    with pytest.raises(ValueError, match="cuts has items of 4 bytes: expected float64"):
        _core.encode_levels(x.astype(float), np.zeros(3, np.uint8), "float64", np.zeros(3, np.float32))


# Policies as data.


def test_resolve_states_the_policy_of_e4m3() -> None:
    assert resolve(parse("e4m3"), Rounding.TIES_TO_EVEN, Overflow.SATURATE) == Conversion(
        mantissa_bits=3,
        emin=-6,
        offset=0,
        max_code=0x7E,
        inf_code=NO_CODE,
        nan_from=0x7F,
        sign_bit=0x80,
        negative_zero=1,
        rounding=0,
        zero_positive=0,
        zero_negative=0x80,
        overflow_positive=0x7E,
        overflow_negative=0xFE,
        infinity_positive=0x7E,
        infinity_negative=0xFE,
        nan_positive=0x7F,
        nan_negative=0xFF,
        below=0,
        twos_complement=0,
    )


def test_resolve_states_the_policy_of_fixed_point() -> None:
    found = resolve(parse("int8_mx"), Rounding.TO_ODD, Overflow.SAT_PROPAGATE)
    assert (found.mantissa_bits, found.emin, found.sign_bit, found.twos_complement) == (6, 0, 0x80, 1)
    assert (found.max_code, found.overflow_positive, found.overflow_negative) == (0x7F, 0x7F, 0x80)
    assert (found.infinity_negative, found.nan_negative, found.zero_negative) == (0x80, 0x7F, 0)
    assert resolve(parse("int8_mx_symmetric"), Rounding.TO_ODD, Overflow.SATURATE).overflow_negative == 0x81


@pytest.mark.parametrize("fmt", [*NARROW, *P3109_NARROW, *ODD, *FIXED], ids=str)
def test_a_policy_that_a_format_cannot_represent_is_refused(fmt: Format) -> None:
    for mode, overflow in itertools.product(MODES, Overflow):
        if oracle.represents(fmt, overflow):
            resolve(fmt, mode, overflow)
        else:
            with pytest.raises(ValueError, match=f"overflow={overflow.name} .*(neither|none)"):
                resolve(fmt, mode, overflow)


def test_modes_are_named_in_any_case() -> None:
    assert member(Rounding, "ties_to_even", "rounding") is Rounding.TIES_TO_EVEN
    assert member(Rounding, "To_Odd", "rounding") is Rounding.TO_ODD
    with pytest.raises(ValueError, match="rounding='nearest': use one of TIES_TO_EVEN"):
        member(Rounding, "nearest", "rounding")


def test_only_stochastic_modes_are_stochastic() -> None:
    assert [mode.name for mode in Rounding if mode.is_stochastic] == [
        "STOCHASTIC",
        "STOCHASTIC_A",
        "STOCHASTIC_B",
        "STOCHASTIC_EQUAL",
    ]


# Any format at all.


@st.composite
def any_formats(draw: st.DrawFn) -> Format:
    """Every combination of fields that describes a format."""
    signed = draw(st.booleans())
    bits = draw(st.integers(2, 32)) - signed
    exponent_bits = draw(st.integers(1, max(1, min(bits, 16))))
    mantissa_bits = min(max(bits - exponent_bits, 0), 23)
    nan = draw(st.sampled_from(Nan))
    infinity = nan is Nan.IEEE or draw(st.booleans())
    bias = draw(st.one_of(st.integers(-200, 300), st.integers(-32768, 32768)))
    zero = signed or mantissa_bits > 0 or draw(st.booleans())
    try:
        return Format(
            "any", exponent_bits, mantissa_bits, bias, nan, infinity, signed, zero, not infinity and bias % 2 == 0
        )
    except ValueError:
        assume(False)
        raise


@settings(max_examples=300)
@given(
    fmt=any_formats(),
    mode=st.sampled_from(Rounding),
    overflow=st.sampled_from(Overflow),
    value=st.floats(),
    code=st.integers(0),
    step=st.integers(-2, 2),
    bits=st.integers(1, 32),
)
def test_any_format_at_all(
    fmt: Format, mode: Rounding, overflow: Overflow, value: float, code: int, step: int, bits: int
) -> None:
    assume(oracle.represents(fmt, overflow))
    near = fmt.to_float(code % (fmt.max_code + 1)) * (1 + step * 2.0**-fmt.mantissa_bits / 4)
    with np.errstate(all="ignore"):
        arrays = [np.array([value, near, -near]).astype(dtype) for dtype in (np.float64, np.float32, np.float16)]
    options = {"rounding": mode, "overflow": overflow, **arguments_for(mode, bits)}
    random = random_integers(3, arguments_for(mode, bits)) if mode.is_stochastic else [0, 0, 0]
    for x in arrays:
        codes = casting.encode(x, fmt, **options)
        numbers = bits_of(casting.cast(x, fmt, **options))
        for k, single in enumerate(x.tolist()):
            expected = oracle.encode(single, fmt, mode, overflow, int(random[k]), bits)
            assert codes[k] == expected, (fmt, single)
            assert numbers[k] == oracle.decode(expected, fmt, x.dtype.name), (fmt, single)
