"""What conversions do, as `fp8sim probe` asks: Triton's in the interpreter, and planted rules."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from test_probe_gemms import tensor_core

from fp8sim.analysis.probing import conversions, converters
from fp8sim.analysis.probing.conversions import Converter, Rule
from fp8sim.analysis.probing.operands import Array
from fp8sim.rounding import Overflow, Rounding

CONVERSIONS = {row.converter.name: row.converter for row in converters.rows("sm90")}
E4M3 = "float8_e4m3fn"


@pytest.fixture(autouse=True)
def fewer_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 20_000)


@pytest.fixture
def on_tensor_cores() -> Iterator[None]:
    pytest.importorskip("triton")
    from fp8sim.triton_kernels import interpreter

    if not interpreter.is_enabled():
        pytest.skip("a GPU answers for itself: test_hardware_probes.py")
    with interpreter.use_dot(tensor_core):
        yield


@pytest.mark.parametrize("name", [name for name in CONVERSIONS if "torch" not in name])
def test_triton_converts_as_predicted(name: str, on_tensor_cores: None) -> None:
    """In the interpreter by tables that were read off NVIDIA's header."""
    found = conversions.examine(dataclasses.replace(CONVERSIONS[name], every=False))
    assert (found.surprise, found.differing, found.examples) == (None, 0, ())
    assert found.compared >= 256


def test_a_cpu_multiplies_float32_whole() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU answers for itself: test_hardware_probes.py")
    assert conversions.examine(CONVERSIONS["torch.mm, operands to tf32"]).rules == ()


RULES: dict[str, tuple[str, str, Rule, Rule]] = {
    "ties away": ("float32", E4M3, Rule(), Rule(Rounding.TIES_TO_AWAY)),
    "toward zero": ("float16", "float8_e5m2", Rule(), Rule(Rounding.TOWARD_ZERO)),
    "no saturation": ("float32", "float8_e5m2", Rule(), Rule(overflow=Overflow.INFINITY)),
    "infinity kept": ("float16", "float8_e5m2", Rule(), Rule(overflow=Overflow.SAT_PROPAGATE)),
    "NaN of its sign": ("float32", E4M3, Rule(), Rule(signed_nan=True)),
    "results flushed": ("float32", E4M3, Rule(), Rule(flushes=frozenset({"result"}))),
    "operands flushed": (
        "float8_e5m2",
        "float16",
        Rule(overflow=Overflow.INFINITY),
        Rule(overflow=Overflow.INFINITY, flushes=frozenset({"source"})),
    ),
    "rounded twice": ("float32", E4M3, Rule(), Rule(through="float16")),
    "tf32 to nearest": (
        "float32",
        "tf32",
        Rule(Rounding.TOWARD_ZERO, Overflow.INFINITY),
        Rule(Rounding.TIES_TO_AWAY, Overflow.INFINITY),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_another_conversion_is_named(name: str) -> None:
    source, target, predicted, planted = RULES[name]
    converter = Converter("x", source, target, conversions.stand_in(planted, source, target), predicted)
    found = conversions.examine(converter)
    assert str(planted) in found.rules
    assert found.differing > 0
    assert found.surprise is not None
    assert str(planted) in found.surprise
    pattern, code, other = found.examples[0]
    given = np.array([int(pattern, 16)], conversions.operand_dtype(source))
    assert int(code, 16) == planted.apply(given, source, target)[0] != int(other, 16)


def test_no_rule_for_what_follows_none() -> None:

    def odd(codes: Array) -> Array:
        found = Rule().apply(codes, "float16", E4M3)
        found[0x3C00] ^= 1
        return found

    found = conversions.examine(Converter("x", "float16", E4M3, odd, Rule()))
    assert (found.differing, found.rules, found.examples) == (1, (), (("0x3c00", "0x39", "0x38"),))
    assert found.surprise == "x: 1 of 65536 differ, as 0x3c00 to 0x39 instead of 0x38: converted by no known rule"


def test_every_pattern_of_binary32_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "_CHUNK", 1 << 16)
    monkeypatch.setattr(conversions, "RANDOM_PATTERNS", 10)
    asked = Converter("x", "float32", E4M3, lambda codes: codes, every=True)
    first, second, third = itertools.islice(conversions.chunks(asked), 3)
    assert conversions.total_chunks(asked) == 65537
    assert [(part.size, part[0], part[-1]) for part in (second, third)] == [
        (1 << 16, 0, 0xFFFF),
        (1 << 16, 0x10000, 0x1FFFF),
    ]
    midway = np.float32(17 / 16).view(np.uint32)  # of E4M3's 1 and 1.125
    assert {midway - 1, midway, midway + 1, 0x7F800001, 0xFFFFFFFF} <= set(first.tolist())
