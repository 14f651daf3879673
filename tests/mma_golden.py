"""Vectors for every instruction, from seeds: python tests/mma_golden.py writes tests/golden/model/mma.json.

Operands come from SHAKE-128 over the instruction's name, so that no library's generator matters; results from the
definition in `mma_oracle`. Three elements each: c = 0; c near 1; c and operands of any bits, infinities and NaN
included.
"""

import hashlib
import json
from pathlib import Path

import mma_oracle
import numpy as np
from mma_cases import Array, finite, width

from fp8sim import mma
from fp8sim.mma import MODELS, MmaModel

FILE = Path(__file__).with_name("golden") / "model/mma.json"
ELEMENTS = 3


def draw(label: str, count: int, dtype: str, bits: int) -> Array:
    """`count` integers of `bits` bits."""
    size = np.dtype(dtype).itemsize
    stream = np.frombuffer(hashlib.shake_128(label.encode()).digest(count * size), np.dtype(dtype).newbyteorder("<"))
    return stream.astype(dtype) & np.array((1 << bits) - 1, dtype)


def operands(model: MmaModel, element: int) -> dict[str, Array]:
    """a, b, c and, where there are any, scale factors of one element; K is one and a half instructions."""
    k = model.k + max(1, model.k // 2)
    seed = f"{model.name} {element} "
    found = {}
    for key, fmt in (("a", model.a_format), ("b", model.b_format)):
        codes = draw(seed + key, k, mma.operand_dtype(fmt), width(fmt))
        found[key] = codes if element == 2 else finite(codes, fmt)
    unsigned = model.accumulator.replace("float", "uint")
    bits = int(unsigned.removeprefix("uint"))
    c = draw(seed + "c", 1, unsigned, bits)
    one = np.array([1], model.accumulator).view(unsigned)
    fraction = unsigned_type(unsigned, (1 << mma_oracle.FORMATS[model.accumulator][1]) - 1)
    found["c"] = (np.zeros_like(c), one | (c & fraction), c)[element]
    if model.scale_block:
        blocks = -(-k // model.scale_block)
        for key in ("a_scales", "b_scales"):
            found[key] = draw(seed + key, blocks, "uint8", 8) % 8 + (124 if model.scale_format == "e8m0" else 0x30)
    return found


def unsigned_type(name: str, value: int) -> Array:
    return np.array(value, name)


def defined(model: MmaModel, element: int) -> int:
    parts = {key: codes.tolist() for key, codes in operands(model, element).items()}
    (c,) = parts.pop("c")
    return mma_oracle.chain(model, parts.pop("a"), parts.pop("b"), c, **parts)


def main() -> None:
    results = {name: [f"{defined(model, i):x}" for i in range(ELEMENTS)] for name, model in MODELS.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in results.items())
    FILE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
