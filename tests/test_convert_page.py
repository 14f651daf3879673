"""Every code block of docs/convert.md runs, in order, and prints what the page says it prints."""

from pathlib import Path

from test_testing_page import blocks, run

PAGE = Path(__file__).resolve().parents[1] / "docs/convert.md"


def test_every_block_runs_and_prints_what_the_page_says(tmp_path):
    namespace, printed = {"__name__": "page"}, ""
    for number, (language, source) in enumerate(blocks(PAGE.read_text())):
        if language == "python":
            printed = run(source, tmp_path / f"block{number}.py", namespace)
        else:
            assert language == "text"
            assert printed.strip() == source.strip()
