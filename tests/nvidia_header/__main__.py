"""Write `triton_kernels/boundaries.json`: the boundaries and values of NVIDIA's conversions, read off its header."""

import json
from pathlib import Path

import numpy as np

from nvidia_header import CODE_TYPES, convert, thresholds

ROOT = Path(__file__).resolve().parents[2]


def shortest_cycle(steps: list[int]) -> list[int]:
    """The shortest list that gives `steps` when repeated as often as needed."""
    for length in range(1, 3):
        if all(step == steps[i % length] for i, step in enumerate(steps)):
            return steps[:length]
    return steps


def encode_table(target: str) -> dict[str, object]:
    found = thresholds(target)
    nan = convert(np.array([0x7FC00000, 0xFFC00000]), "fp32", target)
    return {
        "first": int(found[0]),
        "steps": shortest_cycle(np.diff(found).tolist()),
        "count": found.size,
        "nan": nan.tolist(),
    }


def decode_table(source: str) -> list[int]:
    return convert(np.arange(256), source, "fp32").tolist()


def tables() -> dict[str, object]:
    narrow = [name for name, dtype in CODE_TYPES.items() if dtype is np.uint8]
    return {
        "about": "Conversions from and to binary32 of NVIDIA GPUs (ties to even, FP8 saturating), as cuda_fp8.hpp and "
        "cuda_bf16.hpp emulate them. encode: code k is reached first at binary32 pattern first + the k-1 first steps "
        "(repeated); nan: codes of a positive and a negative NaN. decode: the binary32 pattern of every code.",
        "encode": {name: encode_table(name) for name in ["bf16", *narrow]},
        "decode": {name: decode_table(name) for name in narrow},
    }


if __name__ == "__main__":
    (ROOT / "triton_kernels" / "boundaries.json").write_text(json.dumps(tables(), separators=(",", ":")) + "\n")
