"""Instructions as a table, and everything about one of them."""

from __future__ import annotations

from typing import Any

from fp8sim.mma import ARCHITECTURES, MODELS, MmaModel, parse


def describe(model: MmaModel) -> dict[str, Any]:
    """An instruction's parameters, source and evidence; None where the adder has no such parameter."""
    return {
        "name": model.name,
        "gpus": ARCHITECTURES[model.name.partition(".")[0]].gpus,
        "a_format": model.a_format,
        "b_format": model.b_format,
        "accumulator": model.accumulator,
        "adder": model.adder.name,
        "k": model.k,
        "terms": model.terms,
        "fraction_bits": model.fraction_bits,
        "zero_exponent": model.zero_exponent,
        "output": model.output.label,
        "scale_format": model.scale_format,
        "scale_block": model.scale_block,
        "source": model.source,
        "evidence": {
            category: {"kind": found.kind, "devices": list(found.devices), "outputs": found.outputs}
            for category, found in model.evidence.items()
        },
    }


def rows(name: str | None) -> list[MmaModel]:
    """The instructions that a name, or its beginning up to a dot, stands for; all of them for None.

    Raises:
        ValueError: there is none of that name.
    """
    if name is None:
        return list(MODELS.values())
    found = [model for key, model in MODELS.items() if f"{key}.".startswith(f"{name}.")]
    return found or [parse(name)]


def table(models: list[MmaModel]) -> str:
    """A line for every set of instructions that differ in nothing but their operands' types."""
    groups: dict[tuple[Any, ...], list[MmaModel]] = {}
    for model in models:
        groups.setdefault(_shared(model), []).append(model)
    return "\n".join([_HEAD, *map(_line, groups.values()), _LEGEND])


_COLUMNS = "{:<37} {:<36} {:<12} {:>3} {:>3} {:>3} {:>6}  {:<8}  {}"
_HEAD = _COLUMNS.format("instruction", "types of a and b", "adder", "K", "L", "F", "e_zero", "rounding", "evidence")
_LEGEND = (
    "K products per instruction, L per step, F fraction bits below a step's largest exponent, e_zero the exponent of\n"
    "a term that is zero. `fp8sim mma NAME` tells what confirms an instruction, and by how many outputs."
)


def _shared(model: MmaModel) -> tuple[Any, ...]:
    evidence = str(model.evidence["normal"])
    return (model.instruction, model.adder, model.k, model.terms, model.fraction_bits, model.output.label, evidence)


def _types(models: list[MmaModel]) -> str:
    pairs = [model.name.removeprefix(f"{model.instruction}.").split(".")[:2] for model in models]
    left, right = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    if len(left) > 1 and len(pairs) == len(left) * len(right):
        return f"any two of {' '.join(left)}"
    return ", ".join(" x ".join(dict.fromkeys(pair)) for pair in pairs)


def _line(models: list[MmaModel]) -> str:
    model = models[0]
    bits = ["-" if value is None else str(value) for value in (model.fraction_bits, model.zero_exponent)]
    types, evidence = _types(models), model.evidence["normal"]
    confirmed = f"hardware: {', '.join(evidence.devices)}" if evidence.devices else evidence.kind
    return _COLUMNS.format(
        model.instruction, types, model.adder.name, model.k, model.terms, *bits, model.output.label, confirmed
    )


def listing(model: MmaModel) -> str:
    """Everything about one instruction, evidence by category."""
    row = describe(model)
    width = max(map(len, row))
    lines = [f"{key:<{width}}  {'-' if value is None else value}" for key, value in row.items() if key != "evidence"]
    lines += ["", "what confirms it:"]
    lines += [f"  {category:<12} {found}" for category, found in model.evidence.items()]
    return "\n".join(lines)
