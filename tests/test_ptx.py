"""PTX `cvt.rs`, as far as it is documented, against the rational definition."""

import itertools

import numpy as np
import oracle
import pytest
from boundaries import boundaries

from fp8sim import ptx
from fp8sim.formats import parse
from fp8sim.rounding import Overflow, Rounding

UPPER, LOWER = range(16, 32), range(16)
SHARES = {
    # which bits of the word each operand takes
    "fp16": (range(16, 29), range(13)),
    "bf16": (UPPER, LOWER),
    **dict.fromkeys(("e4m3", "e5m2", "e2m3", "e3m2"), (UPPER, UPPER, LOWER, LOWER)),
    "e2m1": (range(24, 32), range(8, 16), range(16, 24), range(8)),
}


@pytest.mark.parametrize("name", SHARES)
def test_ptx_rs_is_stochastic_a_with_the_operands_share_of_the_random_bits(name: str) -> None:
    fmt, shares = parse(name), SHARES[name]
    x = boundaries(fmt, "float32")
    x = np.resize(x[np.isfinite(x)][:: max(1, x.size // 2000)], (500, len(shares)))
    words = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32)
    codes = ptx.encode_ptx_rs(x, name, words)
    overflow = Overflow.INFINITY if fmt.bits == 16 else Overflow.SATURATE
    for row, (operand, bits) in itertools.product(range(500), enumerate(shares)):
        random = int(words[row]) >> bits.start & ((1 << len(bits)) - 1)
        value = float(x[row, operand])
        expected = oracle.encode(value, fmt, Rounding.STOCHASTIC_A, overflow, random, len(bits))
        assert codes[row, operand] == expected, (name, value, hex(words[row]), operand)


@pytest.mark.parametrize(
    ("name", "nan", "infinity"), [("e4m3", 0x7F, 0x7E), ("e2m1", 0x07, 0x07), ("bf16", 0x7FFF, 0x7F80)]
)
def test_ptx_rs_specials(name: str, nan: int, infinity: int) -> None:
    x = np.resize(np.float32([np.nan, np.inf]), len(SHARES[name]))
    assert ptx.encode_ptx_rs(x, name, np.array(2**32 - 1, np.uint32))[:2].tolist() == [nan, infinity]
    assert ptx.encode_ptx_rs(-x, name, np.array(0, np.uint32)).tolist()[0] == nan


X = np.ones(4, np.float32)
MISUSES = {
    "fmt='float8_e8m0fnu': cvt.rs converts to": lambda: ptx.encode_ptx_rs(X, "e8m0", np.uint32(0)),
    "x has shape \\(4,\\): expected that of rbits and 4": lambda: ptx.encode_ptx_rs(X, "e4m3", np.ones(4, np.uint32)),
}


@pytest.mark.parametrize("message", MISUSES)
def test_misuse_is_a_clear_error(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MISUSES[message]()
