"""Random bits: Philox and its layout against committed vectors; what stochastic rounding does with them, by counts."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from boundaries import assert_same_codes, bits_of, random_integers, widened

import fp8sim
from fp8sim import _core, casting, random_bits
from fp8sim.formats import Format, parse
from fp8sim.rounding import Overflow, Rounding

GOLDEN = json.loads((Path(__file__).parent / "golden/model/random.json").read_text())
Array = np.ndarray[Any, Any]
F64 = ("e4m3", "float64")
FEW = {(0x3DFF, "fp16", 32), (0, "bf16", 32), (0x3FBF, "bf16", 32)}
"""Where binary32 has so few bits below a code that hardly any random integer leaves room for an exact sum."""
SEED, STREAM = 0x0123456789ABCDEF, 0xFEDCBA9876543210


def numbers_of(row: dict[str, Any], *names: str) -> list[int]:
    return [int(row[name], 16) for name in names]


@pytest.mark.parametrize("row", GOLDEN["philox4x32_10"])
def test_philox_gives_the_known_answers(row: dict[str, Any]) -> None:
    counter, key, words = (tuple(int(word, 16) for word in row[name]) for name in ("counter", "key", "words"))
    assert oracle.philox(counter, key) == words


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", _core.isas())
def test_elements_have_the_committed_words(isa: str) -> None:
    _core.set_isa(isa)
    for row in GOLDEN["elements"]:
        seed, stream, element, word = numbers_of(row, "seed", "stream", "element", "word")
        assert oracle.random_integer(seed, stream, element) == word
        assert random_integers(1, {"seed": seed, "stream": stream, "offset": element}) == [word]


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("offset", [0, 1, 63, 64, 2**36 - 40, 2**38 - 3, 2**64 - 100])
def test_a_run_of_elements_has_the_words_of_each(isa: str, offset: int) -> None:
    _core.set_isa(isa)
    for count, bits in ((1, 32), (130, 32), (200, 7), (1100, 1)):
        words = random_integers(count, {"seed": SEED, "stream": STREAM, "offset": offset, "random_bits": bits})
        picked = {0, 1, 63, 64, count // 2, count - 1} & set(range(count))
        assert {i: int(words[i]) for i in picked} == {
            i: oracle.random_integer(SEED, STREAM, offset + i, bits) for i in picked
        }


def test_streams_are_named_by_what_they_serve() -> None:
    for row in GOLDEN["streams"]:
        stream = random_bits.stream_id(row["name"], row["gemm"], row["operand"], row["step"])
        assert stream == int(row["stream"], 16)
    with pytest.raises(ValueError, match="separates the parts"):
        random_bits.stream_id("a|b", "output", "input", 0)


def test_a_shard_reproduces_the_whole() -> None:
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    options = {"rounding": "STOCHASTIC", "seed": SEED, "stream": 5}
    whole = casting.encode(x, "e4m3", offset=17, **options)
    parts = [casting.encode(x[a:b], "e4m3", offset=17 + a, **options) for a, b in ((0, 1), (1, 1234), (1234, 5000))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (casting.encode(x, "e4m3", offset=18, **options) != whole).mean() > 0.1


# Exact counts: over all 2^N random integers, N small, `nu` of them round away.


def away_count(x: float, fmt: Format, below: int, mode: Rounding, bits: int) -> int:
    """How many of the 2^N random integers round x, which lies between two codes, to the upper one."""
    _, first = np.unique(random_integers(4096, {"seed": SEED, "random_bits": bits}), return_index=True)
    assert first.size == 2**bits
    codes = casting.encode(np.full(4096, x, np.float32), fmt, rounding=mode, seed=SEED, random_bits=bits)[first]
    assert set(codes) <= {below, below + 1}
    return int((codes == below + 1).sum())


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e5m2", "e8m0", "bf16"])
def test_stochastic_rounding_by_exact_counts(name: str, bits: int) -> None:
    fmt = parse(name)
    for below in (0, 1, 2, fmt.max_code // 2, fmt.max_code - 1):  # subnormals and the last binade included
        low, high = float(fmt.value(below)), float(fmt.value(below + 1))
        for nu in (0.0625, 0.3, 0.5, 0.7109375, 0.999):
            x = float(np.float32(low + nu * (high - low)))
            exact = (Fraction(x) - fmt.value(below)) / (fmt.value(below + 1) - fmt.value(below)) * 2**bits
            doubled = math.floor(2 * exact)
            expected = {
                Rounding.STOCHASTIC: round(exact),
                Rounding.STOCHASTIC_A: math.floor(exact),
                Rounding.STOCHASTIC_B: doubled // 2 + doubled % 2,
                Rounding.STOCHASTIC_EQUAL: 2 ** (bits - 1) if exact else 0,
            }
            assert {mode: away_count(x, fmt, below, mode, bits) for mode in expected} == expected


def around_the_carry(fmt: Format, below: int, dtype: str, random: Array, bits: int, total: int) -> tuple[Array, Array]:
    """(x, which): x lies (total - R) * 2^-N above code `below` where `dtype` has that number, else on it."""
    low, high = float(fmt.value(below)), float(fmt.value(below + 1))
    fraction = total - random.astype(np.int64)
    exact = low + fraction * ((high - low) * 2.0**-bits)
    x = exact.astype(dtype)
    which = (x == exact) & (fraction > 0) & (fraction < 2**bits)
    return np.where(which, x, np.array(low, dtype)), which


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("mode", [Rounding.STOCHASTIC, Rounding.STOCHASTIC_A, Rounding.STOCHASTIC_B])
@pytest.mark.parametrize(("name", "dtype"), [*((n, "float32") for n in ("e4m3", "e5m2", "e2m1", "fp16", "bf16")), F64])
def test_a_sum_goes_up_where_it_carries_and_not_one_before(name: str, dtype: str, mode: Rounding, isa: str) -> None:
    """Fraction and random integer add up to exactly 2^N - 1, which stays below, and to 2^N, which does not."""
    _core.set_isa(isa)
    fmt = parse(name)
    for bits in (32, 23, 8):
        options = {"seed": SEED, "stream": STREAM, "random_bits": bits}
        random = random_integers(2**16, options)
        for carries, below in itertools.product((False, True), (0, fmt.max_code // 2)):
            x, which = around_the_carry(fmt, below, dtype, random, bits, 2**bits - 1 + carries)
            expected = below + (which & carries)
            what = f"{name} {dtype} {mode.name} {bits} {carries} {below}"
            assert which.sum() > 3 or (below, name, bits) in FEW, what
            by_definition = oracle.encode_array(widened(x), fmt, mode, Overflow.SATURATE, random, bits)
            assert_same_codes(by_definition, expected, x, f"definition {what}")
            assert_same_codes(casting.encode(x, fmt, rounding=mode, **options), expected, x, what)
            numbers = casting.cast(x, fmt, rounding=mode, **options)
            assert_same_codes(
                bits_of(numbers),
                bits_of(casting.decode(expected.astype(casting.code_dtype(fmt)), fmt, dtype=dtype)),
                x,
                f"cast {what}",
            )


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("mode", [Rounding.STOCHASTIC, Rounding.STOCHASTIC_A, Rounding.STOCHASTIC_B])
@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("name", ["e4m3", "bf16"])
def test_bits_below_the_random_ones_decide_where_the_sum_is_on_the_edge(
    name: str, lost: int, mode: Rounding, isa: str
) -> None:
    """The N bits that a random integer meets add up with it to 2^N - 1; `lost` more bits of x lie below them."""
    _core.set_isa(isa)
    fmt = parse(name)
    bits = 23 - fmt.mantissa_bits - lost
    options = {"seed": SEED, "stream": STREAM, "random_bits": bits}
    random = random_integers(2**10, options)
    for low in range(2**lost):
        rest = ((2**bits - 1 - random) << np.uint32(lost)) + np.uint32(low)
        x = (np.float32(1).view(np.uint32) + rest).view(np.float32)
        expected = oracle.encode_array(widened(x), fmt, mode, Overflow.SATURATE, random, bits)
        assert_same_codes(casting.encode(x, fmt, rounding=mode, **options), expected, x, f"{bits} bits, then {low}")


@pytest.mark.parametrize(("name", "x"), [("e4m3", 1.03), ("e4m3", 0.0011), ("e5m2", 50000.0), ("e2m1", -0.07)])
def test_stochastic_rounding_is_right_on_average(name: str, x: float) -> None:
    count = 2**18
    found = casting.cast(np.full(count, x), name, rounding="STOCHASTIC", seed=1)
    low, high = found.min(), found.max()
    share = (x - low) / (high - low)
    sigma = (high - low) * np.sqrt(share * (1 - share) / count)
    assert abs(found.mean() - x) < 4 * sigma


def test_streams_are_uncorrelated() -> None:
    count = 2**16
    draws = [
        random_integers(count, {"seed": seed, "stream": stream}) / 2.0**32 - 0.5
        for seed, stream in ((0, 0), (0, 1), (1, 0), (2**32, 0), (0, 2**32))
    ]
    for i, a in enumerate(draws):
        assert abs(a.mean()) < 4 / np.sqrt(12 * count)
        assert abs((a[1:] * a[:-1]).mean() * 12) < 4 / np.sqrt(count)
        for b in draws[:i]:
            assert abs((a * b).mean() * 12) < 4 / np.sqrt(count)


# Misuse.

X = np.ones(4, np.float32)


def every_caller(x: Any, mode: str, **random: Any) -> list[Any]:
    """Calls of everything that takes random bits; the backends' own functions included."""
    calls = [
        lambda f=f: f(x, "e4m3", rounding=mode, **random)
        for f in (casting.cast, casting.encode, fp8sim.cast, fp8sim.encode)
    ]
    quantizer = f"e4m3:{mode}:SATURATE:1x32/FLOOR/DIVIDE/float8_e8m0fnu/propagate"
    return [
        *calls,
        lambda: fp8sim.quantize(x, f"e4m3:{mode}", **random),
        lambda: fp8sim.quantize(x, quantizer, **random),
        lambda: random_bits.random_keywords(Rounding[mode], **random),
    ]


@pytest.mark.parametrize("x", [X, torch.ones(4)], ids=["array", "tensor"])
@pytest.mark.parametrize("argument", ["stream", "offset", "random_bits"])
def test_random_bits_without_a_seed_are_refused(argument: str, x: Any) -> None:
    for call in every_caller(x, "TIES_TO_EVEN", **{argument: 7}):
        with pytest.raises(ValueError, match=f"{argument}=7: there is no seed.*drop {argument}, or pass seed="):
            call()
    for call in every_caller(x, "STOCHASTIC", **{argument: 7}):
        with pytest.raises(ValueError, match="rounding=STOCHASTIC needs random bits: pass seed="):
            call()
    for call in every_caller(x, "TO_ODD", seed=1, **{argument: 7}):
        with pytest.raises(ValueError, match="seed=1: rounding=TO_ODD takes no random bits"):
            call()


@pytest.mark.parametrize("x", [X, torch.ones(4)], ids=["array", "tensor"])
@pytest.mark.parametrize("argument", ["seed", "stream", "offset", "random_bits"])
def test_random_bits_are_integers(argument: str, x: Any) -> None:
    for value, kind in ((0.5, "float"), ("7", "str")):
        for call in every_caller(x, "STOCHASTIC", **({"seed": 1} | {argument: value})):
            with pytest.raises(TypeError, match=f"{argument}={value!r} is a {kind}: expected an integer"):
                call()


@pytest.mark.parametrize("seed", [torch.tensor(0.5), torch.tensor([1, 2]), torch.tensor(1, dtype=torch.int32)])
def test_a_tensor_for_a_seed_is_one_int64(seed: torch.Tensor) -> None:
    for call in (fp8sim.cast, fp8sim.encode):
        with pytest.raises(TypeError, match="expected one int64, or an int"):
            call(torch.ones(4), "e4m3", rounding="STOCHASTIC", seed=seed)
