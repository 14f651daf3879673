"""Every instruction still gives the committed vectors."""

import json

import mma_golden
import numpy as np
import pytest
from mma_cases import bits

from fp8sim import _core, mma
from fp8sim.mma import MODELS

VECTORS = json.loads(mma_golden.FILE.read_text())


def test_every_instruction_has_vectors() -> None:
    assert list(VECTORS) == list(MODELS)
    assert all(len(found) == mma_golden.ELEMENTS for found in VECTORS.values())


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", _core.isas())
def test_vectors_hold(isa: str) -> None:
    _core.set_isa(isa)
    for name, wanted in VECTORS.items():
        model, found = MODELS[name], []
        for element in range(mma_golden.ELEMENTS):
            parts = {key: codes[None] for key, codes in mma_golden.operands(model, element).items()}
            a, b, c = (parts.pop(key) for key in "abc")
            d = mma.chain(a, b, c.view(model.accumulator), model=model, **parts)
            found.append(f"{int(bits(np.asarray(d))[0, 0]):x}")
        assert found == wanted, name
