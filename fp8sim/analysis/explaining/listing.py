"""An explanation as the command line prints it."""

from __future__ import annotations

from collections.abc import Iterator

from fp8sim.analysis.explaining.difference import Difference
from fp8sim.analysis.explaining.inputs import Design
from fp8sim.analysis.explaining.trial import EquivalenceClass
from fp8sim.analysis.explaining.verdict import Explanation

_CLASSES, _MEMBERS, _REJECTED = 8, 3, 3
"""How many are printed; --json has all."""


def listing(explanation: Explanation) -> str:
    """The verdict, what reproduces every bit with its evidence, and what comes closest."""
    return "\n".join(_lines(explanation))


def _lines(explanation: Explanation) -> Iterator[str]:
    problem, found = explanation.problem, explanation.classes
    tried = len(found) + len(explanation.rejected)
    yield (
        f"{explanation.verdict}: {len(found)} of {tried} computations reproduce all {explanation.elements} elements "
        f"({problem.m} x {problem.n}, K = {problem.k})"
    )
    for index, members in enumerate(found[:_CLASSES], 1):
        yield from _class_lines(index, members)
    if len(found) > _CLASSES:
        yield f"  ... and {len(found) - _CLASSES} more (--json - lists them)"
    if explanation.closest is not None:
        yield from _difference_lines(explanation.closest)
    if explanation.rejected:
        yield "excluded, the closest first:"
    for rejected in explanation.rejected[:_REJECTED]:
        yield f"  {rejected.first}: {rejected.differing} of {rejected.compared} elements compared differ"


def _class_lines(index: int, members: EquivalenceClass) -> Iterator[str]:
    yield f"  {index}. {members.first}"
    others = [str(hypothesis) for hypothesis in members.hypotheses[1:]]
    if others:
        more = f" and {len(others) - _MEMBERS} more" if len(others) > _MEMBERS else ""
        yield f"     the same bits for any numbers of this shape: {', '.join(others[:_MEMBERS])}{more}"
    by_kind: dict[str, list[str]] = {}
    for category, known in members.model.evidence.items():
        by_kind.setdefault(str(known), []).append(category)
    yield "     evidence: " + "; ".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())


def _difference_lines(closest: Difference) -> Iterator[str]:
    where = " and ".join(
        f"{axis} {first}..{last}" for axis, (first, last) in (("rows", closest.rows), ("columns", closest.columns))
    )
    yield f"closest: {closest.hypothesis}"
    yield f"  differs in {closest.differing} of {closest.elements} elements: {closest.pattern}, {where}"
    yield f"  by at most {closest.ulps:.6g} ulp; {closest.ties} of them are ties of the output's rounding"
    norms = f"{closest.deviation:.2g}, that of the hypothesis {closest.usual_deviation:.2g}"
    yield f"  norm of its deviation from the exact sums, over theirs: {norms}"
    if closest.rounding_possible:
        yield "  no element lies beyond mma.error_bound: the worst case does not rule out rounding or another order"
    else:
        yield f"  {closest.beyond_bound} elements lie beyond mma.error_bound: rounding cannot be the cause"
    for fault in closest.faults:
        yield f"  {'cause' if fault.exact else 'likely cause'}: {fault.text}"


def design_listing(found: Design, path: str) -> str:
    """What was designed, and what it cannot separate."""
    m, n, k = found.case.shape
    lines = [
        f"{path}: a [{m}, {k}], b [{k}, {n}] separate {len(found.classes)} computations"
        + (f", but for {len(found.together)} pairs:" if found.together else "")
    ]
    lines += [f"  {found.classes[i].first} and {found.classes[j].first}" for i, j in found.together]
    lines.append("run the kernel on them, add its output as 'actual', and explain that file")
    return "\n".join(lines)
