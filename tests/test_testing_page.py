"""Every code block of docs/testing.md runs, in order, and prints what the page says it prints."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs/testing.md"


def blocks(text):
    """(language, source) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(source, path, namespace):
    """What a block prints; it runs from a file, because Triton reads the source of its kernels."""
    path.write_text(source)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, str(path), "exec"), namespace)
    return printed.getvalue()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the page has a Triton kernel")
def test_every_block_runs_and_prints_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, printed = {"__name__": "page"}, ""
    for number, (language, source) in enumerate(blocks(PAGE.read_text())):
        if language == "python":
            printed = run(source, tmp_path / f"block{number}.py", namespace)
        elif language == "cpp":
            (tmp_path / "cast.cpp").write_text(source)
        else:
            assert language == "text"
            assert source.strip() in printed


def test_blocks_are_found():
    assert blocks("a\n```python\nx = 1\n```\nb\n```text\n1\n```\n") == [("python", "x = 1\n"), ("text", "1\n")]
