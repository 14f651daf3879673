"""The simulator against golden vectors: those of every device that has some, and a stand-in's, to prove the check."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp8sim import mma
from fp8sim.analysis.probing import StandIn, capture, compare_golden, confirmed, evidence, load, load_all, save
from fp8sim.analysis.probing.goldens import CHAIN, Golden, exercised
from fp8sim.mma import CATEGORIES, MODELS, parse
from fp8sim.mma.evidence import PROBED, PROBED_FILE, Evidence, with_probes

FOLDER = Path(__file__).with_name("golden")
COMMITTED = sorted(FOLDER.glob("*/*.npz"))
LARGEST_DEVICE = 8_000_000
"""Bytes of one device's files."""

NAME = "sm90.wgmma.bf16.bf16.f32"
ABOUT = {"device": "NVIDIA H900", "driver": "1.2", "machine_code": ["HGMMA.64x8x16.F32.BF16"]}


NONE_YET = "tests/golden has no device yet: `fp8sim probe --golden tests/golden` on a GPU captures its vectors"
EVERY = [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in COMMITTED]


@pytest.mark.parametrize("path", EVERY or [pytest.param(FOLDER, marks=pytest.mark.skip(NONE_YET))])
def test_the_simulator_gives_every_output_of_every_device(path: Path) -> None:
    golden = load(path)
    assert path.relative_to(FOLDER) == Path(golden.device.lower(), f"{golden.row}.npz")
    assert not golden.about.get("stand_in"), "captured from the simulator"
    assert {"device", "driver", "cuda", "torch", "triton", "ptx", "machine_code"} <= golden.about.keys()
    found = compare_golden(golden)
    assert (found.differing, found.first) == (0, ""), f"{found.differing} of {found.compared} differ: {found.first}"


def test_a_device_is_a_few_megabytes() -> None:
    for folder in {path.parent for path in COMMITTED}:
        assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST_DEVICE


def test_evidence_is_what_the_golden_vectors_confirm() -> None:
    """`fp8sim probe --evidence tests/golden > fp8sim/mma/probed.json` makes it so."""
    assert json.loads(PROBED_FILE.read_text()) == evidence(FOLDER)
    assert PROBED.keys() <= MODELS.keys()


# The check itself, on stand-ins


@pytest.fixture(scope="module")
def golden() -> Golden:
    return capture(StandIn(parse(NAME), tile=(64, 8)), "H900", ABOUT)


def test_a_file_holds_everything(golden: Golden, tmp_path: Path) -> None:
    path = save(golden, tmp_path)
    assert path == tmp_path / "h900" / f"{NAME}.npz"
    assert path.stat().st_size < 200_000
    (found,) = load_all(tmp_path)
    assert (found.row, found.device, found.about) == (NAME, "H900", ABOUT)
    assert list(found.parts) == list(golden.parts)
    for category, (inputs, d) in golden.parts.items():
        same, same_d = found.parts[category]
        assert np.array_equal(d, same_d)
        for name in ("a", "b", "c"):
            assert np.array_equal(getattr(inputs, name), getattr(same, name))
    assert golden.parts["chain"][0].a.shape == (2, 64, CHAIN * 16)
    assert golden.parts["chain"][0].c.any()


@pytest.mark.parametrize("name", ["sm80.mma.f64.f64.f64", "sm100.tcgen05.mxf4nvf4.block16.ue4m3.e2m1.e2m1.f32"])
def test_every_kind_of_instruction_has_a_file(name: str, tmp_path: Path) -> None:
    path = save(capture(StandIn(parse(name), tile=(16, 8)), "H900", ABOUT, outputs=128), tmp_path)
    assert compare_golden(load(path)).differing == 0


def test_the_same_capture_twice_has_the_same_inputs(golden: Golden) -> None:
    again = capture(StandIn(parse(NAME), tile=(64, 8)), "H900", ABOUT)
    for category, (inputs, d) in golden.parts.items():
        assert np.array_equal(inputs.a, again.parts[category][0].a)
        assert np.array_equal(d, again.parts[category][1])


def test_one_planted_bit_is_found(golden: Golden, tmp_path: Path) -> None:
    inputs, d = golden.parts["cancellation"]
    wrong = d.copy()
    wrong[1, 7, 3] ^= 1
    changed = dataclasses.replace(golden, parts={**golden.parts, "cancellation": (inputs, wrong)})
    found = compare_golden(load(save(changed, tmp_path)))
    assert (found.compared, found.differing) == (golden.outputs, 1)
    assert found.first.startswith(f"cancellation [1, 7, 3]: H900 returned {int(wrong[1, 7, 3]):#x}, computed ")
    assert confirmed(changed) == {}


@pytest.mark.parametrize(
    "fields",
    [{"fraction_bits": 24}, {"terms": 8}, {"zero_exponent": -132}, {"output": mma.Output.RNE_FP32}],
    ids=str,
)
def test_another_arithmetic_is_found(golden: Golden, fields: dict[str, object]) -> None:
    assert compare_golden(golden).differing == 0
    assert compare_golden(golden, dataclasses.replace(parse(NAME), **fields)).differing > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_what_is_no_golden_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no file of golden vectors"):
        load(path)


def test_a_damaged_file_is_refused_wherever_the_damage_is(golden: Golden, tmp_path: Path) -> None:
    path = save(golden, tmp_path)
    whole = path.read_bytes()
    for place in range(60, 20_000, 1_700):  # in names, compressed data and checksums
        path.write_bytes(whole[:place] + bytes(byte ^ 0xA5 for byte in whole[place : place + 8]) + whole[place + 8 :])
        with pytest.raises(ValueError, match="no file of golden vectors"):
            load(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="no file of golden vectors"):
        load(path)


def rewritten(path: Path, changes: dict[str, Any], **head: Any) -> Path:
    """A file of golden vectors with other arrays, None for none, and another head."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    about = json.loads(str(arrays.pop("about"))) | head
    kept = {key: x for key, x in (arrays | changes).items() if x is not None}
    np.savez(path, about=np.array(json.dumps(about)), **kept)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normal/d": None}, "'normal' has a, b, c, expected a, b, c, d"),
        ({"normal/a": None}, "'normal' has b, c, d"),
        ({"other": np.zeros(3)}, "'' has other"),
        ({"normal/a_scales": np.zeros((1, 1, 1), np.uint8)}, "has a, a_scales, b, c, d"),
        ({"normal/d": np.zeros((2, 64, 8), np.float32)}, r"normal/d is float32 \[2, 64, 8\]"),
        ({"normal/a": np.zeros((2, 64, 16), np.uint8)}, "normal/a is uint8"),
        ({"normal/d": np.zeros((1, 1, 1), np.uint32)}, r"normal: d is \[1, 1, 1\], c \[2, 64, 8\]"),
        ({"normal/a": np.zeros((2, 64, 8), np.uint16), "normal/b": np.zeros((2, 8, 8), np.uint16)}, "K 8"),
        ({"normal/b": np.zeros((2, 8, 32), np.uint16)}, r"expected \[cases, M, K\]"),
    ],
)
def test_what_the_instruction_does_not_take_is_refused(
    changes: dict[str, Any], message: str, golden: Golden, tmp_path: Path
) -> None:
    """A comparison of arrays that do not fit would compare something else, or less than it says."""
    with pytest.raises(ValueError, match=f"no file of golden vectors .*{message}"):
        load(rewritten(save(golden, tmp_path), changes))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"row": "sm99.mma"}, "'sm99.mma' is no instruction"),
        ({"device": None}, "its device is None"),
        ({"about": [1]}, "its about"),
    ],
)
def test_a_file_must_say_what_it_is_of(head: dict[str, Any], message: str, golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(rewritten(save(golden, tmp_path), {}, **head))


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", about=np.array(json.dumps({"schema": 0})))
    with pytest.raises(ValueError, match="schema 0, expected 1"):
        load(tmp_path / "x.npz")


# What they confirm


def test_outputs_count_where_they_exercise_something(golden: Golden) -> None:
    model = parse(NAME)
    counts = confirmed(golden)
    assert counts.keys() == set(CATEGORIES) - ({"chains"} - counts.keys())
    assert counts["zero_terms"] >= 2  # a zero one binade higher or lower would show
    inputs, d = golden.parts["specials"]
    found = exercised(inputs, d, model)
    numbers = [x.astype(np.uint32).__lshift__(16).view(np.float32) for x in (inputs.a, inputs.b)]
    special = ~np.isfinite(numbers[0]).all(-1)[:, :, None] | ~np.isfinite(numbers[1]).all(-1)[:, None, :]
    with np.errstate(invalid="ignore"):
        special |= ~np.isfinite(inputs.c.view(np.float32))
    assert np.array_equal(found["specials"], special)
    assert not (found["specials"] & (found["normal"] | found["overflow"] | found["nonzero_c"])).any()
    _, overflowed = golden.parts["overflow"]
    inputs, _ = golden.parts["overflow"]
    assert (exercised(inputs, overflowed, model)["overflow"] == (overflowed & 0x7FFFFFFF == 0x7F800000)).all()


def test_evidence_names_the_device(golden: Golden, tmp_path: Path) -> None:
    save(golden, tmp_path)
    save(dataclasses.replace(golden, device="H901", about={**ABOUT, "device": "NVIDIA H901"}), tmp_path)
    counts = confirmed(golden).items()
    assert evidence(tmp_path) == {NAME: {category: {"H900": count, "H901": count} for category, count in counts}}
    before = {
        "normal": Evidence("hardware", ("H100",), 10),
        "overflow": Evidence("reference"),
        "x": Evidence("inferred"),
    }
    merged = with_probes(before, {"normal": {"H100": 1, "H900": 2}, "overflow": {"H900": 3}})
    assert {name: str(value) for name, value in merged.items()} == {
        "normal": "hardware (H100, H900: 13)",
        "overflow": "hardware (H900: 3)",
        "x": "inferred",
    }


def test_a_stand_in_is_no_evidence(golden: Golden, tmp_path: Path) -> None:
    save(dataclasses.replace(golden, about={"stand_in": "sm90"}), tmp_path)
    with pytest.raises(ValueError, match="captured from the simulator: it is no evidence"):
        evidence(tmp_path)


@pytest.mark.parametrize("device", [None, "NVIDIA H901"])
def test_what_names_no_device_or_another_one_is_no_evidence(device: Any, golden: Golden, tmp_path: Path) -> None:
    save(dataclasses.replace(golden, about={**ABOUT, "device": device}), tmp_path)
    with pytest.raises(ValueError, match=f"is of 'H900', captured on {device!r}: it is no evidence"):
        evidence(tmp_path)


def test_a_copy_does_not_count_twice(golden: Golden, tmp_path: Path) -> None:
    save(golden, tmp_path)
    shutil.copytree(tmp_path / "h900", tmp_path / "again")
    with pytest.raises(ValueError, match=r"again/.* belongs at .*h900/"):
        evidence(tmp_path)
    with pytest.raises(ValueError, match="name the folder that has a folder for each device"):
        evidence(tmp_path / "h900")
