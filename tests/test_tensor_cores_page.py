"""Every code block of docs/tensor-cores.md runs, in order, and prints what the page says it prints."""

import captures
from test_captures import PAGE
from test_testing_page import blocks, run

from fp8sim.mma import CAPTURED, OUTPUTS_PER_CAPTURE


def test_every_block_runs_and_prints_what_the_page_says(tmp_path):
    namespace, printed = {"__name__": "page"}, ""
    for number, (language, source) in enumerate(blocks(PAGE.read_text())):
        if language == "python":
            printed = run(source, tmp_path / f"block{number}.py", namespace)
        else:
            assert language == "text"
            assert printed.strip() == source.strip()


@captures.needs_captures
def test_the_table_of_results_is_what_the_captures_say():
    text = PAGE.read_text()
    for name, row in CAPTURED.items():
        sets = [capture for capture in captures.capture_sets() if str(capture.model) == name]
        differences = sum(capture.differences(capture.model) for capture in sets)
        outputs = f"{OUTPUTS_PER_CAPTURE * len(sets):,}"
        assert f"| `{name}` | {', '.join(row.devices)} | {outputs} | {differences} |" in text
