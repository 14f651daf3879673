"""A coordinate check as the command line prints it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fp8sim.analysis.coordinates.judging import EXPONENT_FAIL, EXPONENT_PASS, Finding, reason, worst
from fp8sim.analysis.coordinates.measuring import Measurements
from fp8sim.analysis.coordinates.slopes import Slope
from fp8sim.analysis.coordinates.table import COLUMNS, header, lines
from fp8sim.analysis.verdicts import Verdict


def listing(measured: Measurements, findings: Sequence[Finding]) -> str:
    """The exponents of every module with their verdicts, and the verdict with its reason."""
    rows = list(lines(measured, findings))
    width = max(len(line.finding.name) for line in rows)
    text = [
        header(measured),
        f"exponents e of sizes that go as width^e; up to {EXPONENT_PASS} from what is expected passes, "
        f"{EXPONENT_FAIL} fails",
        f"  {'module':<{width}}  {'kind':<8}{''.join(f'{column:>{len(column) + 2}}' for column in COLUMNS)}  verdict",
    ]
    for line in rows:
        cells = zip(line.slopes, COLUMNS, strict=True)
        exponents = "".join(f"{_exponent(slope):>{len(column) + 2}}" for slope, column in cells)
        note = " (follows)" if line.finding.verdict is Verdict.FAIL and not line.finding.is_cause else ""
        text.append(f"  {line.finding.name:<{width}}  {line.finding.kind:<8}{exponents}  {line.finding.verdict}{note}")
    why = textwrap.wrap(reason(findings), 118, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*text, f"coord-check: {worst(findings)}", *why])


def _exponent(slope: Slope) -> str:
    return "-" if slope.value is None else f"{slope.value:+.2f}"
