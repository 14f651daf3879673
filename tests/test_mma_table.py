"""The instructions as the command line prints them."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from fp8sim import cli
from fp8sim.analysis import mma_table
from fp8sim.mma import CATEGORIES, MODELS


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["mma", *arguments])


def test_the_table_has_every_instruction() -> None:
    lines = invoke().stdout.splitlines()
    instructions = {line.split()[0] for line in lines[1:-2]}
    assert instructions == {model.instruction for model in MODELS.values()}
    assert max(map(len, lines)) <= 145
    (line,) = (line for line in lines if line.startswith("sm70.mma ") and "RZ-FP32" in line)
    assert line.split() == ["sm70.mma", "f16", "TRUNCATED", "4", "4", "23", "-131", "RZ-FP32", "hardware:", "V100"]


def test_types_that_share_everything_share_a_line() -> None:
    lines = invoke("sm100.tcgen05").stdout.splitlines()
    assert sum("any two of e4m3 e5m2 e3m2 e2m3 e2m1" in line for line in lines) == 3
    wgmma = invoke("sm90.wgmma").stdout
    assert "e4m3, e5m2" in wgmma
    assert "e4m3 x e5m2, e5m2 x e4m3" in wgmma


def test_one_instruction_is_told_in_full() -> None:
    text = invoke("sm90.wgmma.e4m3.e4m3.f32").stdout
    assert "hardware (H100, H200: 4000)" in text
    assert all(category in text for category in CATEGORIES)


def test_json_has_every_parameter() -> None:
    rows = json.loads(invoke("--json").stdout)
    assert [row["name"] for row in rows] == list(MODELS)
    (row,) = json.loads(invoke("sm100.tcgen05.mxf4nvf4.block16.ue4m3", "--json").stdout)
    assert (row["adder"], row["fraction_bits"], row["zero_exponent"]) == ("GROUPED", 35, -139)
    assert (row["scale_format"], row["scale_block"], row["output"]) == ("e4m3", 16, "RZ-FP32")
    assert row["evidence"]["normal"] == {"kind": "reference", "devices": [], "outputs": 0}


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="is no instruction: there are sm70.mma"):
        mma_table.rows("sm90.hmma")
    with pytest.raises(ValueError, match="sm90.wgmma accepts f16.f16.f32"):
        mma_table.rows("sm90.wgmma.e2m1")
