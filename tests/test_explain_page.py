"""Every code block of docs/explain.md runs, in order, and prints what the page says it prints."""

import shlex
from pathlib import Path

from test_testing_page import blocks, run
from typer.testing import CliRunner

from fp8sim import cli

PAGE = Path(__file__).resolve().parents[1] / "docs/explain.md"


def test_every_block_runs_and_prints_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, printed = {"__name__": "page"}, ""
    for number, (language, source) in enumerate(blocks(PAGE.read_text())):
        if language == "python":
            printed = run(source, tmp_path / f"block{number}.py", namespace)
        elif language == "sh":
            program, *arguments = shlex.split(source)
            assert program == "fp8sim"
            printed = CliRunner().invoke(cli.app, arguments).stdout
        else:
            assert language == "text"
            assert printed.strip() == source.strip()
