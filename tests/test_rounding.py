"""Every format of at most 8 bits, mode, policy, source dtype and instruction set against the definition."""

import itertools

import numpy as np
import oracle
import pytest
from boundaries import (
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

from fp8sim import _core, casting
from fp8sim.formats import Format, Nan, p3109, parse
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
    [parse("e2m1"), parse("e8m0"), p3109(4, 1), p3109(4, 2, extended=False), p3109(4, 3, signed=False), *ODD[:3]],
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


QUICK = [*NARROW, *ODD, p3109(8, 1), p3109(8, 4), p3109(8, 3, extended=False), p3109(8, 5, signed=False), p3109(3, 1)]


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
    )


@pytest.mark.parametrize("fmt", [*NARROW, *P3109_NARROW, *ODD], ids=str)
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


@settings(max_examples=300, deadline=None)
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
