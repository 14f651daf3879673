"""The table of docs/tensor-cores.md is what the captures say."""

import captures
from test_captures import PAGE

from fp8sim.mma import CAPTURED, OUTPUTS_PER_CAPTURE


@captures.needs_captures
def test_the_table_of_results_is_what_the_captures_say():
    text = PAGE.read_text()
    for name, row in CAPTURED.items():
        sets = [capture for capture in captures.capture_sets() if str(capture.model) == name]
        differences = sum(capture.differences(capture.model) for capture in sets)
        outputs = f"{OUTPUTS_PER_CAPTURE * len(sets):,}"
        assert f"| `{name}` | {', '.join(row.devices)} | {outputs} | {differences} |" in text
