"""Every code block of these pages runs, in order, and prints what the page says it prints."""

from pathlib import Path

import pytest
from test_testing_page import blocks, run

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize(
    "page", ["attention", "backends", "convert", "fused", "probe", "recipes", "tensor-cores", "triton"]
)
def test_every_block_runs_and_prints_what_the_page_says(page, tmp_path):
    namespace, printed = {"__name__": "page"}, ""
    for number, (language, source) in enumerate(blocks((DOCS / f"{page}.md").read_text())):
        if language == "python":
            printed = run(source, tmp_path / f"block{number}.py", namespace)
        else:
            assert language == "text"
            assert printed.strip() == source.strip()
