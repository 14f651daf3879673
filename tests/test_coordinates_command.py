"""`fp8sim coord-check`, and every code block of docs/coord-check.md."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_testing_page import blocks, run
from typer.testing import CliRunner

from fp8sim import cli
from fp8sim.training import coordinates

PAGE = Path(__file__).resolve().parents[1] / "docs/coord-check.md"
SHORT = ["--widths", "32,64", "--steps", "2", "--seeds", "1"]


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["coord-check", *map(str, arguments)])


def without_numbers(text):
    """Exponents differ in their last digit between machines, and with them where lines break."""
    return re.sub(r"[+-]?\d+\.\d\d", "#", " ".join(text.split()))


def test_every_block_of_the_page_runs_and_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace, printed = {"__name__": "page"}, ""
    for number, (language, source) in enumerate(blocks(PAGE.read_text())):
        if language == "python":
            name = "wiring.py" if source.startswith("# wiring.py") else f"block{number}.py"
            printed = run(source, tmp_path / name, namespace)
        elif language == "sh":
            program, *arguments = shlex.split(source)
            assert program == "fp8sim"
            printed = CliRunner().invoke(cli.app, arguments).stdout
        else:
            assert language == "text"
            assert without_numbers(printed) == without_numbers(source)


def test_the_decoder_of_a_recipe(tmp_path):
    found = invoke("--recipe", "u_mup_fp8", "--widths", "64,128,256", "--seeds", "2", "--steps", "3", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    assert "decoder, recipe u_mup_fp8, learning rate 0.5" in found.stdout
    assert "largest effects of the recipe's casts" in found.stdout
    data = json.loads((tmp_path / "coord-check.json").read_text())
    effects = {effect["quantity"]: effect["ratio"] for effect in data["cast_effects"]}
    assert effects.keys() == {"activation", "change", "own change", "gradient", "update"}
    assert 0.9 < effects["activation"] < 1.1
    assert effects["activation"] != 1

    page = (tmp_path / "coord-check.html").read_text()
    assert "http" not in page
    unclosed = Unclosed()
    unclosed.feed(page)
    assert unclosed.open == []


class Unclosed(HTMLParser):
    """Elements that are open at the end."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_recipe_without_casts_and_a_rate_that_is_too_large_for_standard_models(tmp_path):
    options = ["--recipe", "fp32", "--lr", "0.01", "--heads", "2", "--widths", "32,64,128", "--steps", "3"]
    found = invoke(*options, "--seeds", "2", "--out", tmp_path, "--json", "-")
    assert found.exit_code == 2
    data = json.loads(found.stdout)
    assert (data["verdict"], data["cast_effects"]) == ("FAIL", [])
    assert data["reason"].startswith("layers.0.attention")


FACTORY = """
import torch
def factory(width):
    model = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.0)
def batch(step):
    return torch.ones(4, 3), torch.ones(4, 2)
nothing = None
def wide(width):
    return torch.nn.Embedding(5, width), None
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    return tmp_path / "mine.py"


def test_functions_of_a_file_or_a_module(file):
    for where in (file, "mine"):
        found = invoke("--factory", f"{where}:factory", "--batch", f"{where}:batch", *SHORT, "--json", "-")
        assert found.exit_code == 0, found.output
        reasons = {finding["name"]: finding["reason"] for finding in json.loads(found.stdout)["findings"]}
        assert reasons["0.bias"].startswith("0.bias: its parameters do not move")


WRONG = {
    "no function named": (["--factory", "mine.py"], "expected package.module:function or file.py:function"),
    "no such file": (["--factory", "their.py:factory"], "their.py: no such file"),
    "no such function": (["--factory", "mine.py:f"], "mine.py has no function 'f'; it has factory, batch, wide"),
    "no function": (["--factory", "mine.py:nothing"], "has no function 'nothing'"),
    "no such module": (["--factory", "their:factory"], "their cannot be imported: ModuleNotFoundError"),
    "a file that fails": (["--factory", "broken.py:f"], "broken.py cannot be imported: .*no_such_library"),
    "no optimizer": (["--factory", "mine.py:wide"], r"factory\(32\) returned Embedding, NoneType"),
    "a recipe beside a factory": (["--factory", "mine.py:wide", "--recipe", "fp32"], "--recipe fp32: is for"),
    "a batch without a factory": (["--batch", "mine.py:batch"], "is for a --factory"),
    "a text beside a batch": (["--factory", "m:f", "--batch", "m:b", "--text", "t"], "--batch says what"),
    "an unknown recipe": (["--recipe", "fp7"], "unknown recipe 'fp7'"),
    "widths": (["--widths", "64;128"], "--widths 64;128: expected integers"),
    "a rate": (["--lr", "-1"], "must be positive"),
    "heads": (["--heads", "5"], "heads=5 must divide width=32"),
    "expected": (["--expect", "embedding"], "--expect embedding: expected NAME=EXPONENT"),
    "json": (["--json", "file"], "only '-'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_errors_that_say_what_helps(name, file):
    arguments, message = WRONG[name]
    given = arguments if "--widths" in arguments else [*SHORT, *arguments]
    found = invoke(*given)
    with pytest.raises(ValueError, match=message):
        raise found.exception


def test_steps_are_counted_for_the_progress_bar(tmp_path):
    options = coordinates.Options(None, None, "u_mup_fp8", None, None, None, (16, 32), 1, 2, {})
    done = []
    coordinates.run(options, done.append)
    assert len(done) == coordinates.total_advances(options) == 2 * 3
