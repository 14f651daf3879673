"""Reading files of golden vectors: what is damaged, foreign or incomplete is refused, and the message says where."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fp8sim import mma
from fp8sim.analysis.probing.instruments import Inputs, Interface
from fp8sim.analysis.probing.operands import Array
from fp8sim.mma import operand_dtype

SCHEMA = 1
INPUTS = tuple(field.name for field in dataclasses.fields(Inputs))

Parts = dict[str, tuple[Inputs, Array]]


def read(path: Path) -> tuple[dict[str, Any], Parts]:
    """What a file says it is of, with "row", "device" and "about"; and category -> (inputs, bits of d).

    Raises:
        ValueError: not such a file, one of another schema, or arrays that the row does not take.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        head = _head(json.loads(str(arrays.pop("about"))))
        parts = {} if head["schema"] != SCHEMA else _parts(arrays, Interface.of(mma.parse(head["row"])))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: no file of golden vectors ({error}); 'fp8sim probe --golden FOLDER' writes them"
        ) from error
    if head["schema"] != SCHEMA:
        raise ValueError(f"{path}: schema {head['schema']}, expected {SCHEMA}: capture it again")
    return head, parts


def _head(found: Any) -> dict[str, Any]:
    """`found` if it is what `goldens.save` writes. ValueError otherwise."""
    if not isinstance(found, dict) or "schema" not in found:
        raise ValueError("it does not say its schema")
    kinds = {"row": str, "device": str, "about": dict} if found["schema"] == SCHEMA else {}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"its {name} is {found.get(name)!r}")
    return found


def _parts(arrays: Mapping[str, Array], takes: Interface) -> Parts:
    """The arrays by category, each with everything that the instruction takes and nothing else."""
    scales = () if takes.scale_block is None else ("a_scales", "b_scales")
    wanted = {"a", "b", "c", "d", *scales}
    by_category: dict[str, dict[str, Array]] = {}
    for key, x in arrays.items():
        category, _, name = key.rpartition("/")
        by_category.setdefault(category, {})[name] = x
    for category, named in by_category.items():
        if named.keys() != wanted:
            raise ValueError(f"{category!r} has {', '.join(sorted(named))}, expected {', '.join(sorted(wanted))}")
        _check(category, named, takes)
    return {
        category: (Inputs(**{name: x for name, x in named.items() if name in INPUTS}), named["d"])
        for category, named in by_category.items()
    }


def _check(category: str, named: Mapping[str, Array], takes: Interface) -> None:
    """ValueError unless dtypes and shapes are those of the instruction."""
    dtypes = {"a": operand_dtype(takes.a_format), "b": operand_dtype(takes.b_format)}
    dtypes |= dict.fromkeys("cd", takes.accumulator_bits)
    for name, x in named.items():
        if x.ndim != 3 or x.dtype != dtypes.get(name, "uint8"):
            raise ValueError(f"{category}/{name} is {x.dtype} {list(x.shape)}")
    k = named["a"].shape[2]
    if named["d"].shape != named["c"].shape or k == 0 or k % takes.k:
        raise ValueError(f"{category}: d is {list(named['d'].shape)}, c {list(named['c'].shape)}, K {k}")
