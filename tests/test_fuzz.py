"""A short run of the fuzzer of the bindings; `make fuzz` runs it for longer, under AddressSanitizer."""

import fuzz
import numpy as np
import pytest

from fp8sim import _core


def test_the_bindings_refuse_or_are_right() -> None:
    made, accepted = fuzz.run(seed=0, calls=1500)
    assert made == 1500
    assert 500 < accepted < made


def test_the_fuzzer_notices_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _core.encode

    def off_by_one(source: np.ndarray, target: np.ndarray, *rest: object, **keywords: object) -> None:
        original(source, target, *rest, **keywords)  # type: ignore[arg-type]
        target[-1:] ^= 1

    monkeypatch.setattr(_core, "encode", off_by_one)
    with pytest.raises(AssertionError, match="expected 0x"):
        fuzz.run(seed=0, calls=1500)
