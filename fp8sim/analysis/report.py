"""A validation as one screen of text, from the content of validation.json."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp8sim.formats import parse

_ISA = {"avx2": "AVX2", "avx512": "AVX-512"}
"""Instruction sets as their makers write them."""


def terminal(data: dict[str, Any], paths: tuple[Path, Path]) -> str:
    """The tables of both questions, the result, and where the details are."""
    lines = [*_header(data), "", *_scaling_table(data), "", *_arithmetic_table(data), "", *_result(data)]
    return "\n".join([*lines, f"details: {paths[1]}   data: {paths[0]} (schema {data['schema']})"])


def _header(data: dict[str, Any]) -> list[str]:
    env, text, run = data["environment"], data["text"], data["run"]
    model, steps = run["model"], run["steps"]
    torch_version, isa = env["torch"].split("+")[0], _ISA.get(env["isa"], env["isa"])
    return [
        f"fp8sim {env['fp8sim']}  torch {torch_version} {env['device']} ({env['threads']} threads, {isa})   "
        f"text: {text['name']}, {text['characters']:,} characters, sha {text['sha256'][:4]}...   seed {run['seed']}",
        f"model: transformer of {model['blocks']} blocks, width {model['width']}, {model['heads']} heads, "
        f"{model['symbols']} symbols, {run['batch']} x {run['length']} tokens/step   looked at: step 0 and {steps}",
    ]


def _scaling_table(data: dict[str, Any]) -> list[str]:
    steps = data["run"]["steps"]
    lines = [
        "1  Does the scaling rule hold?            ideal sqnr: e4m3 31.5 dB, e5m2 25.5 dB",
        f"   {'recipe':<18} {f'worst operand (step 0 or {steps})':<34} {'sqnr':>8} {'zeroed':>8} {'clipped':>8} "
        f"{'grad cos':>9}  verdict",
    ]
    for entry in data["scaling"]:
        worst, star = entry["worst"], "" if entry["decides"] else " *"
        lines.append(
            f"   {entry['recipe']['name']:<18} {entry['decisive']['subject']:<34} "
            f"{_number(worst['sqnr'], '.1f', ' dB'):>8} "
            f"{_share(worst['zeroed']):>8} {_share(worst['clipped']):>8} {_number(worst['cosine'], '.3f'):>9}  "
            f"{entry['verdict']}{star}"
        )
    return lines + _explanations(data)


def _number(value: float | None, spec: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{spec}}{unit}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _explanations(data: dict[str, Any]) -> list[str]:
    if all(entry["decides"] for entry in data["scaling"]):
        return []
    lines = ["   * baseline: shown and explained, never decides the exit code."]
    for sentence in explain_baselines(data):
        lines += textwrap.wrap(sentence, 118, initial_indent=" " * 5, subsequent_indent=" " * 5)
    return lines


def explain_baselines(data: Mapping[str, Any]) -> list[str]:
    """A sentence on each cause for which baselines do not hold, from the content of validation.json."""
    causes: dict[str, list[str]] = {}
    for entry in data["scaling"]:
        if not entry["decides"] and entry["verdict"] != "PASS":
            causes.setdefault(_cause(entry, data), []).append(entry["recipe"]["name"])
    return [f"{', '.join(names)}: {cause}" for cause, names in causes.items()]


def _cause(entry: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Why a recipe does not hold, from the operand that decides."""
    finding, tokens = entry["decisive"], data["run"]["length"] * data["run"]["batch"]
    operand = finding["subject"].split()[-1]
    if entry["recipe"]["parametrization"] == "standard" and operand == "grad_output":
        return (
            f"gradients of a mean loss over {tokens} tokens lie near or below the smallest number of their format "
            f"(e5m2 {float(parse('e5m2').smallest):.1e}, fp16 {float(parse('fp16').smallest):.1e}); one constant loss "
            f"scale lifts them, unit scaling needs none."
        )
    if entry["recipe"]["parametrization"] == "mup" and operand == "grad_output":
        return (
            f"muP's readout divides gradients, already those of a mean over {tokens} tokens, by the width "
            f"({data['run']['model']['width']}): they lie below the smallest number of e5m2 "
            f"({float(parse('e5m2').smallest):.1e}); u-muP starts them at one."
        )
    if entry["recipe"]["parametrization"] == "standard" and operand == "weight":
        return "weights of standard deviation (3 fan_in)^-1/2 reach e4m3's subnormal numbers; unit-scaled ones do not."
    return f"{finding['subject']}: {finding['reason']}."


def _arithmetic_table(data: dict[str, Any]) -> list[str]:
    width = max(len(row["name"]) for row in [{"name": "op or kernel"}, *data["arithmetic"]])
    lines = [
        "2  Do ops and kernels compute what they claim?",
        f"   {'op or kernel':<{width}} {'ran on':<12} {'contract':<10} {'compared':>13} {'mismatches':>11}  verdict",
    ]
    for row in data["arithmetic"]:
        counts = (f"{row['compared']:,}", f"{row['mismatches']:,}") if row["compared"] else ("-", "-")
        reason = f" ({row['detail']})" if row["verdict"] == "NOT CHECKED" else ""
        lines.append(
            f"   {row['name']:<{width}} {row['ran_on']:<12} {row['contract']:<10} {counts[0]:>13} {counts[1]:>11}  "
            f"{row['verdict']}{reason}"
        )
        if row["verdict"] == "FAIL":
            lines.append(f"      {row['detail']}")
    return [*lines, f"   accumulation simulated: {data['run']['accumulation']}"]


def _result(data: dict[str, Any]) -> list[str]:
    deciding = [entry for entry in data["scaling"] if entry["decides"]]
    failing = [entry["recipe"]["name"] for entry in deciding if entry["verdict"] == "FAIL"]
    warned = [entry["recipe"]["name"] for entry in deciding if entry["verdict"] == "WARN"]
    holding = [entry["recipe"]["name"] for entry in deciding if entry["verdict"] == "PASS"]
    broken = [row["name"] for row in data["arithmetic"] if row["verdict"] == "FAIL"]
    kernels = [row for row in data["arithmetic"] if row["ran_on"] != "simulate"]
    agree = sum(row["verdict"] == "PASS" for row in kernels)
    unchecked = sum(row["verdict"] == "NOT CHECKED" for row in kernels)
    parts = [f"broken: {', '.join(broken)}"] if broken else []
    parts += [f"{', '.join(failing)} fail{'s' if len(failing) == 1 else ''} on this model"] if failing else []
    parts += [f"{', '.join(warned)} outside the limits of PASS"] if warned else []
    parts += [f"{', '.join(holding)} hold{'s' if len(holding) == 1 else ''} on this model"] if holding else []
    missing = data["required_but_not_run"]
    parts += [f"required but not run: {', '.join(missing)}"] if missing else []
    parts.append(f"{agree} kernel{'' if agree == 1 else 's'} agree{'s' if agree == 1 else ''}, {unchecked} not checked")
    return [f"RESULT  {'; '.join(parts)}.     {data['seconds']:.0f} s"]
