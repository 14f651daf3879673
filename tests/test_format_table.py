"""The catalogue as the command line prints it."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from fp8sim import cli, formats
from fp8sim.analysis import format_table
from fp8sim.formats import FORMATS


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["formats", *arguments])


def test_the_table_has_a_line_for_every_format() -> None:
    lines = invoke().stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(FORMATS)
    assert max(map(len, lines)) <= 120
    (e4m3,) = (line for line in lines if line.startswith("float8_e4m3fn "))
    assert e4m3.split() == ["float8_e4m3fn", "e4m3,", "e4m3fn", "1/4/3", "7", "448", "2^-9", "-", "0x7f", "(all_ones)"]


def test_json_of_the_table_is_that_of_the_catalogue() -> None:
    rows = json.loads(invoke("--json").stdout)
    assert [row["max_code"] for row in rows] == [fmt.max_code for fmt in FORMATS.values()]


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e8m0", "binary4p2se", "e5m2fnuz", "int8_mx", "nf4"])
def test_a_listing_has_every_code(name: str) -> None:
    fmt = formats.parse(name)
    lines = invoke(name).stdout.splitlines()[1:]
    assert [int(line.split()[0], 16) for line in lines] == list(fmt.codes)
    rows = json.loads(invoke(name, "--json").stdout)["codes"]
    for row in rows:
        if fmt.is_finite(row["code"]):
            assert row["value"] == float(fmt.value(row["code"]))
        else:
            assert row["value"] is None
            assert row["kind"] in ("nan", "infinity", "-infinity")


def test_a_line_shows_the_fields() -> None:
    lines = invoke("e4m3").stdout.splitlines()
    assert lines[1 + 0x81].split() == ["0x81", "1.0000.001", "subnormal", "-0.001953125"]
    assert lines[1 + 0x7E].split() == ["0x7e", "0.1111.110", "normal", "448"]
    assert lines[1 + 0x80].split() == ["0x80", "1.0000.000", "-zero", "-0"]
    assert invoke("int8_mx").stdout.splitlines()[1 + 0x81].split() == ["0x81", "10000001", "number", "-1.984375"]
    lines = invoke("nf4").stdout.splitlines()
    assert lines[0].split()[:4] == ["normalfloat4", "nf4", "4", "bits"]
    assert lines[1].split() == ["0x0", "0000", "number", "-1"]


def test_codes_of_wide_formats_are_not_listed() -> None:
    with pytest.raises(ValueError, match="tf32 has 2\\^19 codes"):
        format_table.codes(formats.parse("tf32"))
