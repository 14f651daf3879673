"""Throws random arguments at the bindings of fp8sim._core: a refusal or a right answer, and no other memory touched.

    python tests/fuzz.py [--seconds 20] [--seed 0]

Arrays lie anywhere in one piece of memory: misaligned, strided, reversed, overlapping, read-only, of any dtype and
size; conversions are those of random formats, often with a few integers replaced. Under AddressSanitizer (`make fuzz`)
reads and writes beyond an array end the process; without it, bytes around the target are compared.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle

from fp8sim import _core
from fp8sim.formats import FORMATS, Codebook, Format, Nan
from fp8sim.rounding import Overflow, Rounding, resolve

Array = np.ndarray[Any, Any]

MEMORY = 1 << 19
SIZES = [0, 1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 127, 130, 1023, 1024, 1025, 2049, 4095, 4096, 5000, 32768, 33000]
DTYPES = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8", "uint8": "u1", "uint16": "u2"}
DTYPES |= {"uint32": "u4"}
FLOATS, CODES = ("float16", "bfloat16", "float32", "float64"), ("uint8", "uint16", "uint32")
WRONG_DTYPES = ["i1", "c8", "O", "U3", "f2", "u8", ">f4", "?"]
EXTREMES = [
    0,
    1,
    2,
    23,
    24,
    31,
    32,
    63,
    127,
    128,
    255,
    1023,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
]


@dataclass
class Call:
    """One call of a function of _core, and what is known of it."""

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    fmt: Format | None
    """None: the conversion is no format's, and any answer will do."""
    policy: tuple[Rounding, Overflow]


class Generator:
    """Random calls, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.memory = np.frombuffer(bytearray(self.random.randbytes(MEMORY)), np.uint8)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def array(self, dtype: str, size: int, start: int) -> Array:
        """`size` elements of `dtype` in the memory, most often as the loops want them."""
        if self.chance(0.02):
            return np.zeros(size, self.random.choice(WRONG_DTYPES))
        width = np.dtype(dtype).itemsize
        step = self.random.choice([2, -1, 3]) if self.chance(0.03) else 1
        misaligned = self.random.randrange(width) if self.chance(0.03) else 0
        begin = start // 64 * 64 + misaligned
        part = self.memory[begin : begin + size * width * abs(step)].view(dtype)[::step]
        if self.chance(0.02) and size % 4 == 0:
            part = part.reshape(4, -1).T
        if self.chance(0.02):
            part = part[:-1]
        if self.chance(0.02):
            part.flags.writeable = False
        return part

    def operands(self, source: str, target: str) -> tuple[Array, Array]:
        """Two arrays: apart, most often; the same one; or overlapping."""
        size = self.random.choice(SIZES)
        apart = MEMORY // 2
        start = self.random.randrange(apart - size * 8 - 64) if size * 8 + 64 < apart else 0
        where = self.random.choices([start + apart, start, start + self.random.randrange(64)], [8, 2, 1])[0]
        size = min(size, (apart - start - 64) // 24)
        return self.array(DTYPES[source], size, start), self.array(DTYPES[target], size, where)

    def format(self) -> Format:
        """One of the catalogue, or any that is valid."""
        pick = self.random.randint
        while not self.chance(0.5):
            exponent_bits, mantissa_bits, signed = pick(1, 8), pick(0, 10), self.chance(0.8)
            nan = self.random.choice(list(Nan))
            infinity = nan is Nan.IEEE or self.chance(0.5)
            bias = pick(-200, 300)
            try:
                return Format("fuzzed", exponent_bits, mantissa_bits, bias, nan, infinity, signed)
            except ValueError:
                continue
        return self.random.choice([fmt for fmt in FORMATS.values() if not isinstance(fmt, Codebook)])

    def conversion(self) -> tuple[list[Any], Format | None, tuple[Rounding, Overflow]]:
        fmt = self.format()
        policy = self.random.choice(list(Rounding)), self.random.choice(list(Overflow))
        if not oracle.represents(fmt, policy[1]):
            policy = policy[0], Overflow.SATURATE
        fields: list[Any] = list(resolve(fmt, *policy))
        if self.chance(0.85):
            return fields, fmt, policy
        for _ in range(self.random.randint(1, 4)):
            value = self.random.choice([self.random.choice(EXTREMES), -self.random.choice(EXTREMES), 2.5, None, 2**70])
            fields[self.random.randrange(len(fields))] = value if self.chance(0.5) else self.random.randint(0, 300)
        return fields[: self.random.choice([len(fields)] * 9 + [3])], None, policy

    def stream(self) -> dict[str, Any]:
        keywords: dict[str, Any] = {name: self.random.getrandbits(64) for name in ("seed", "stream", "offset")}
        keywords["random_bits"] = self.random.randint(1, 32)
        if self.chance(0.05):
            keywords[self.random.choice(list(keywords))] = self.random.choice([-1, 0, 33, 2**64, 2.0, "1", None])
        return keywords

    def call(self) -> Call:
        name = self.random.choice(["cast", "encode", "decode", "random_integers"])
        fields, fmt, policy = self.conversion()
        if name == "random_integers":
            _, target = self.operands("uint32", "uint32")
            return Call(name, (target,), self.stream(), None, policy)
        floats, codes = self.random.choice(FLOATS), self.random.choice(CODES)
        if fmt is not None and fmt.bits > int(codes[4:]):
            codes = "uint32"
        kinds = {"cast": (floats, floats), "encode": (floats, codes), "decode": (codes, floats)}[name]
        source, target = self.operands(*kinds)
        names = (floats,) if name == "cast" else kinds
        if self.chance(0.02):
            names = tuple(self.random.choice([*DTYPES, "int8", ""]) for _ in names)
        if name == "decode" and fmt is not None and source.dtype.kind == "u":
            if source.flags.writeable:
                source &= np.array((1 << fmt.bits) - 1).astype(source.dtype)  # codes outside a format have no meaning
            else:
                fmt = None
        return Call(name, (source, target, *names, fields), {} if name == "decode" else self.stream(), fmt, policy)


def value_of(x: Array, dtype: str) -> float:
    """Element 0 as binary64, exact; -NaN keeps its sign."""
    x = x.view(DTYPES[dtype])
    if dtype == "bfloat16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        return float(x[0])


def expected(call: Call, source: Array, index: int) -> int:
    """The bits of target[index], by the definition."""
    assert call.fmt is not None
    *names, _ = call.arguments[2:]
    element = source[index : index + 1]
    if call.name == "decode":
        return oracle.decode(int(element.view(DTYPES[names[0]])[0]), call.fmt, names[1])
    mode, overflow = call.policy
    where, bits = call.keywords["offset"] + index, call.keywords["random_bits"]
    integer = oracle.random_integer(call.keywords["seed"], call.keywords["stream"], where, bits)
    code = oracle.encode(value_of(element, names[0]), call.fmt, mode, overflow, integer, bits)
    return code if call.name == "encode" else oracle.decode(code, call.fmt, names[0])


def check(generator: Generator, call: Call) -> bool:
    """Make the call. Whether it was accepted. AssertionError for a wrong answer, or a change outside of the target."""
    *_, target = call.arguments[: 1 if call.name == "random_integers" else 2]
    source = call.arguments[0].copy()
    before = generator.memory.copy()
    try:
        getattr(_core, call.name)(*call.arguments, **call.keywords)
    except (ValueError, TypeError):
        assert np.array_equal(before, generator.memory), f"refused, and memory was changed: {call}"
        return False
    changed = np.flatnonzero(before != generator.memory)
    if changed.size and np.shares_memory(target, generator.memory):
        begin = target.ctypes.data - generator.memory.ctypes.data
        inside = begin <= changed[0] and changed[-1] < begin + target.nbytes
        assert inside, f"memory outside was changed: {call}"
    if call.fmt is not None and target.size:
        for index in {0, target.size - 1, generator.random.randrange(target.size)}:
            found = int(target[index : index + 1].view(f"u{target.itemsize}")[0])
            wanted = expected(call, source, index)
            assert found == wanted, f"[{index}] is {found:#x}, expected {wanted:#x}: {call}"
    return True


def run(seed: int, seconds: float = float("inf"), calls: int = 2**63) -> tuple[int, int]:
    """Until the time or the number of calls is up: how many were made, and how many of them were accepted."""
    generator, isa, threads = Generator(seed), _core.isa(), _core.get_num_threads()
    made = accepted = 0
    end = time.monotonic() + seconds
    try:
        while made < calls and time.monotonic() < end:
            if made % 50 == 0:
                _core.set_isa(generator.random.choice(_core.isas()))
                _core.set_num_threads(generator.random.randint(1, 4))
            accepted += check(generator, generator.call())
            made += 1
    finally:
        _core.set_isa(isa)
        _core.set_num_threads(threads)
    return made, accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    made, accepted = run(options.seed, options.seconds)
    print(f"{made} calls, {accepted} accepted and right, the others refused ({_core.__file__})")


if __name__ == "__main__":
    main()
